"""`ClassifyStream` at a real server: order, errors in their place, flow control, ends of every kind."""

import itertools
import json
import threading

import grpc
import numpy as np
import pytest
from conftest import start_server, wait_until
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

TIMEOUT_S = 20
METHOD = "/digits.v1.DigitClassifier/ClassifyStream"


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return pb_grpc.DigitClassifierStub(channel)


def message(digit=8, images=1, **fields):
    fields = {"pixels": image_of(digit).tobytes() * images} | fields
    return pb.ClassifyStreamRequest(request=pb.ClassifyRequest(**fields))


def outcome(answer):
    """Return the digits of an answer, or the name of its error."""
    if answer.HasField("error"):
        return next(code.name for code in grpc.StatusCode if code.value[0] == answer.error.code)
    return list(answer.response.digits)


def test_answers_come_in_order(stub):
    """A thousand messages on one stream are answered in order."""
    digits = np.random.default_rng(3).integers(0, 10, 1000).tolist()
    answers = stub.ClassifyStream((message(digit) for digit in digits), timeout=TIMEOUT_S)
    assert [outcome(answer) for answer in answers] == [[digit] for digit in digits]


def test_large_and_small_messages_keep_their_order(stub):
    """Messages of one image and of a thousand, for three versions, are answered in order, whichever is fast."""
    wanted = [(1, "toy-a", "1"), (1000, "toy-a", "2"), (1, "toy-b", "1"), (1000, "toy-b", "")] * 5
    requests = (message(4, images, model=model, version=version) for images, model, version in wanted)
    answers = list(stub.ClassifyStream(requests, timeout=TIMEOUT_S))
    assert [outcome(answer) for answer in answers] == [
        [5 if version == "2" else 4] * images for images, _, version in wanted
    ]


def test_bad_messages_get_their_own_errors_in_their_place(channel):
    """A wrong image, option, model, even bytes that are no message, are told; the stream goes on."""
    good = message().SerializeToString()
    bad = [
        (message(pixels=b"x").SerializeToString(), "INVALID_ARGUMENT", "pixels: 1 bytes; allowed is a multiple of 784"),
        (b"", "INVALID_ARGUMENT", "pixels: no images"),
        (b"\xff" * 9, "INVALID_ARGUMENT", "its 9 bytes are not a message of the expected type"),
        (message(top_k=11).SerializeToString(), "INVALID_ARGUMENT", "top_k: is 11; allowed is 0 to 10"),
        (message(model="other").SerializeToString(), "NOT_FOUND", "model: 'other' is not served"),
        (message(version="3").SerializeToString(), "NOT_FOUND", "version: toy-b has no version '3'"),
        (
            message(images=5000).SerializeToString(),
            "INVALID_ARGUMENT",
            "images: 5000 in one request; allowed are up to 4096",
        ),
    ]
    sent = itertools.chain.from_iterable((data, good) for data, _, _ in bad)
    call = channel.stream_stream(METHOD, response_deserializer=pb.ClassifyStreamResponse.FromString)
    answers = list(call(sent, timeout=TIMEOUT_S))
    assert [outcome(answer) for answer in answers[1::2]] == [[8]] * len(bad)
    assert [outcome(answer) for answer in answers[::2]] == [code for _, code, _ in bad]
    for answer, (_, _, words) in zip(answers[::2], bad, strict=True):
        assert words in answer.error.message


def test_half_close_is_answered_to_the_end(stub):
    """A caller who has sent everything, or nothing, before reading anything gets every answer, then OK."""
    for count in (0, 1, 500):
        sent_all = []

        def requests(count=count, sent_all=sent_all):
            yield from (message() for _ in range(count))
            sent_all.append(True)

        call = stub.ClassifyStream(requests(), timeout=TIMEOUT_S)
        wait_until(lambda sent_all=sent_all: sent_all)
        assert [outcome(answer) for answer in call] == [[8]] * count
        assert call.code() == grpc.StatusCode.OK


def test_deadline_ends_a_stream(stub):
    """A stream left open beyond its deadline ends with DEADLINE_EXCEEDED; what was asked before is answered."""
    is_over = threading.Event()

    def requests():
        yield message()
        is_over.wait()

    call = stub.ClassifyStream(requests(), timeout=0.5)
    assert outcome(next(call)) == [8]
    with pytest.raises(grpc.RpcError):
        next(call)
    is_over.set()
    assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancelled_streams_leave_nothing_behind(server, channel, stub):
    """Callers who cancel in the middle of streams leave no image waiting and no task complaining."""
    for taken in range(20):
        call = stub.ClassifyStream((message() for _ in range(5000)), timeout=TIMEOUT_S)
        for _ in range(taken):
            next(call)
        call.cancel()
    assert list(stub.Classify(message(5).request, timeout=TIMEOUT_S).digits) == [5]
    wait_until(lambda: server.metric("digits_queue_depth{") == 0)
    assert [line for line in server.log.splitlines() if json.loads(line)["level"] == "ERROR"] == []


def test_a_cancelled_stream_takes_its_images_along(toy_models, tmp_path, transport):
    """What a stream has in work when its caller leaves is never run: the window of messages, and those around it."""
    flags = ["--default-model=toy-b", f"--transport={transport}", "--max-wait-ms=10000", "--max-batch-size=1024"]
    server = start_server(toy_models, tmp_path, *flags)
    with grpc.insecure_channel(server.address) as channel:
        call = pb_grpc.DigitClassifierStub(channel).ClassifyStream(message() for _ in range(200))
        # 128 in the window, one whose answer is awaited, one for which there is no room.
        wait_until(lambda: server.metric("digits_queue_depth{") == 130)
        call.cancel()
        wait_until(lambda: server.metric("digits_queue_depth{") == 0)
    assert server.metric("digits_predictions_total") == 0
    assert server.stop() == 0


def test_a_stream_waits_for_itself_instead_of_filling_the_queue(toy_models, tmp_path, transport):
    """One caller's stream of large messages gets answers, not RESOURCE_EXHAUSTED, and leaves the queue some room."""
    # Batches wait for company, so that there is time to read more than the queue would hold.
    flags = ["--default-model=toy-b", f"--transport={transport}", "--max-wait-ms=100", "--max-queue=700"]
    server = start_server(toy_models, tmp_path, *flags, "--max-batch-size=700")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        answers = stub.ClassifyStream((message(images=60) for _ in range(40)), timeout=TIMEOUT_S)
        assert [outcome(answer) for answer in answers] == [[8] * 60] * 40
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("transport", "data"),
    [
        ("grpcio", message(images=100).SerializeToString()),
        ("grpcio", b"\xff" * 78_400),
        ("envoy", message(images=100).SerializeToString()),  # it holds 4 MB of answers: 40,000 of those to garbage
    ],
    indirect=["transport"],
    ids=["grpcio-images", "grpcio-garbage", "envoy-images"],
)
def test_who_sends_and_never_reads_is_bounded(server, channel, stub, data):
    """A caller who takes no answers can't send on for ever, nor cost memory; others are served; reading, it goes on."""
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 1
            yield data

    def is_stuck():
        before = sent
        wait_until(lambda: stub.Classify(message(5).request, timeout=TIMEOUT_S).digits and next(polls) % 20 == 0)
        return sent == before > 0

    polls = itertools.count(1)
    stub.Classify(message().request, timeout=TIMEOUT_S)
    before_mb = server.memory_mb
    call = channel.stream_stream(METHOD, response_deserializer=pb.ClassifyStreamResponse.FromString)(endless())
    wait_until(is_stuck, timeout_s=60)
    assert server.memory_mb - before_mb < 64
    stuck_at = sent
    for _ in range(stuck_at + 100):
        assert len(outcome(next(call))) in {100, len("INVALID_ARGUMENT")}
    assert sent > stuck_at
    call.cancel()
