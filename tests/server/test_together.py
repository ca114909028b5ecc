"""Calls that come together are answered together, and as if they had come one by one."""

import asyncio
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_server.api.classifier import DigitClassifier
from digits_server.errors import Unauthenticated
from digits_server.inference.batcher import Batcher
from digits_server.inference.engine import Predictions
from digits_server.metrics.definitions import Metrics
from digits_server.rpc.interceptor import Intercepted

POISON = 200


def message(value, **options):
    return pb.ClassifyRequest(pixels=bytes([value]) * 784, **options).SerializeToString()


class Server:
    """A method's calls, from their messages to their answers, on a puppet model that sees an image's first pixel."""

    def __init__(self, guard=None, **settings):
        self.runs, self.reports, self.answers, self.calls = [], [], {}, {}
        self.has_run = asyncio.Event()
        settings = {"max_batch_size": 64, "max_queue": 1000} | settings
        self.batcher = Batcher(self._run, on_batch=self.reports.append, **settings)
        package = SimpleNamespace(labels=list("0123456789"), name="puppet", version="1")
        model = SimpleNamespace(batcher=self.batcher, package=package, signature=b"")
        transport = SimpleNamespace(
            server=SimpleNamespace(
                add_generic_rpc_handlers=lambda _handlers: None,
                add_registered_method_handlers=lambda _service, _handlers: None,
            ),
            add_direct=lambda path, begin: self._direct.update({path: begin}),
            allows_pushback=False,
        )
        self._direct = {}
        self.metrics = Metrics()
        self.rpcs = Intercepted(transport, self.metrics, lambda _path: guard)
        pb_grpc.add_DigitClassifierServicer_to_server(DigitClassifier(SimpleNamespace(get=lambda *_: model)), self.rpcs)

    def _run(self, images):
        values = np.concatenate([rows[:, 0] for rows in images]).astype(np.uint8)
        self.runs.append([len(rows) for rows in images])
        self.has_run.set()
        if POISON in values:
            raise RuntimeError("poison")
        probabilities = np.zeros((len(values), 10), np.float32)
        probabilities[np.arange(len(values)), values] = 0.5 + values / 100
        ones = np.ones(len(values), np.float32)
        return Predictions(values, probabilities.max(axis=1), probabilities, values % 4, ones)

    def receive(self, messages, *, metadata=None, remaining=None):
        """Have calls come together; their ids are their places in the list."""
        ids, nothing = range(len(messages)), [None] * len(messages)
        arrivals = list(zip(ids, messages, metadata or [()] * len(messages), remaining or nothing, strict=True))
        self._direct["/digits.v1.DigitClassifier/Classify"](self, arrivals, time.monotonic())

    def leave(self, call_id):
        self.calls.pop(call_id).leave(call_id)

    def respond(self, call_id, data, _trailers):
        del self.calls[call_id]
        assert call_id not in self.answers
        self.answers[call_id] = pb.ClassifyResponse.FromString(data)

    def fail(self, call_id, code, _message, _trailers=()):
        del self.calls[call_id]
        assert call_id not in self.answers
        self.answers[call_id] = code

    async def settled(self):
        async with asyncio.timeout(30):
            await self.rpcs.finished()
        assert self.calls == {}
        assert self.batcher.in_flight == 0
        assert self.batcher.waiting_rows == 0

    def handled(self):
        """Return how many calls have ended, by status."""
        return {
            sample.labels["grpc_code"]: sample.value
            for metric in self.metrics.collect()
            for sample in metric.samples
            if sample.name == "grpc_server_handled_total" and sample.value
        }


def digits(server):
    return {call_id: int(*answer.digits) for call_id, answer in server.answers.items()}


async def test_they_run_and_are_answered_as_one_request():
    """Ten requests are one array in one run; each has the answer that it has when it comes alone."""
    server, alone = Server(), Server()
    server.receive([message(digit) for digit in range(10)])
    await server.settled()
    assert server.runs == [[10]]
    assert server.handled() == {"OK": 10}
    assert len(server.reports[0].queue_s) == 10
    for digit in range(10):
        alone.receive([message(digit)])
        await alone.settled()
        assert alone.runs[-1] == [1]
        server.answers[digit].ClearField("timing")
        alone.answers[0].ClearField("timing")
        assert server.answers[digit] == alone.answers.pop(0)


@pytest.mark.parametrize(
    ("unusual", "answer"),
    [
        (message(3, top_k=2), [3]),
        (message(3, model="puppet"), [3]),
        (pb.ClassifyRequest(vectors=[0.0] * 784).SerializeToString(), [0]),
        (pb.ClassifyRequest(pixels=bytes(2 * 784)).SerializeToString(), [0, 0]),
        (b"\x1a\x8f\x06" + bytes(784), grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x1a\x90\x06" + bytes(783), grpc.StatusCode.INVALID_ARGUMENT),
        (b"", grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["options", "model", "vectors", "two images", "other length, same size", "cut short", "empty"],
)
async def test_an_unusual_one_has_its_own_answer(unusual, answer):
    """If one asks for something else, or is wrong, all others have their answers nevertheless."""
    server = Server()
    server.receive([message(1)] * 5 + [unusual] + [message(2)] * 5)
    await server.settled()
    found = server.answers.pop(5)
    assert (found if isinstance(answer, grpc.StatusCode) else list(found.digits)) == answer
    assert digits(server) == {call_id: 1 if call_id < 5 else 2 for call_id in range(11) if call_id != 5}


async def test_one_leaves():
    """The others are answered; its row is counted as run in vain."""
    server = Server()
    server.receive([message(digit) for digit in range(8)])
    server.leave(3)
    await server.settled()
    assert digits(server) == {digit: digit for digit in range(8) if digit != 3}
    assert [report.unwanted for report in server.reports] == [1]
    assert server.handled() == {"OK": 7, "CANCELLED": 1}


async def test_all_leave():
    """The model is not called."""
    server = Server()
    server.receive([message(1)] * 8)
    for call_id in range(8):
        server.leave(call_id)
    await server.settled()
    assert (server.runs, server.answers, server.handled()) == ([], {}, {"CANCELLED": 8})


async def test_queue_has_room_for_some():
    """As many are admitted as there is room for, and exactly the others are refused."""
    server = Server(max_queue=5)
    server.receive([message(1)] * 8)
    await server.settled()
    assert list(server.answers.values()).count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 3
    assert server.handled() == {"OK": 5, "RESOURCE_EXHAUSTED": 3}


async def test_one_provokes_a_fault():
    """Only that one fails, and nobody is answered twice."""
    server = Server()
    server.receive([message(1)] * 6 + [message(POISON)] + [message(2)])
    await server.settled()
    assert server.answers.pop(6) == grpc.StatusCode.INTERNAL
    assert digits(server) == {**dict.fromkeys(range(6), 1), 7: 2}


async def test_one_leaves_while_all_begin_again():
    """After a fault, one who leaves before its second beginning is not begun again."""
    server = Server()
    server.receive([message(1)] * 7 + [message(POISON)])
    await server.has_run.wait()
    server.leave(0)
    await server.settled()
    assert server.answers.pop(7) == grpc.StatusCode.INTERNAL
    assert digits(server) == dict.fromkeys(range(1, 7), 1)
    assert server.handled() == {"OK": 6, "CANCELLED": 1, "INTERNAL": 1}


async def test_all_leave_while_they_begin_again():
    """After a fault nobody is left to begin again."""
    server = Server()
    server.receive([message(POISON)] * 8)
    await server.has_run.wait()
    for call_id in range(8):
        server.leave(call_id)
    await server.settled()
    assert (server.runs, server.answers, server.handled()) == ([[8]], {}, {"CANCELLED": 8})


async def test_a_guard_looks_at_each():
    """Where calls are let in by their metadata, each is looked at, and only the others are refused."""

    def guard(metadata):
        if ("token", "right") not in metadata:
            raise Unauthenticated("no")

    server = Server(guard=guard)
    server.receive([message(1)] * 8, metadata=[(("token", "right"),), ()] * 4)
    await server.settled()
    assert server.handled() == {"OK": 4, "UNAUTHENTICATED": 4}
    assert [server.answers[call_id] for call_id in (1, 3, 5, 7)] == [grpc.StatusCode.UNAUTHENTICATED] * 4


async def test_one_has_too_little_time():
    """One whose deadline can't be met is told so; the others are answered."""
    server = Server(cost=lambda rows: 0.01 * rows)
    server.receive([message(1)] * 8, remaining=[10.0, None] * 3 + [0.001, 10.0])
    await server.settled()
    assert server.answers.pop(6) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert digits(server) == {call_id: 1 for call_id in range(8) if call_id != 6}


async def test_more_than_a_batch():
    """They are not one request then: who came first has an answer first."""
    server = Server(max_batch_size=4)
    server.receive([message(digit) for digit in range(10)])
    await server.settled()
    assert digits(server) == {digit: digit for digit in range(10)}
    assert [sum(sizes) for sizes in server.runs] == [4, 4, 2]


async def test_drain_refuses_each():
    """A server that shuts down takes none."""
    server = Server()
    server.rpcs.is_draining = True
    server.receive([message(1)] * 8)
    assert set(server.answers.values()) == {grpc.StatusCode.UNAVAILABLE}
    assert server.handled() == {"UNAVAILABLE": 8}
