"""Concurrent calls travel as one, and hurt nobody."""

import asyncio
import threading

import grpc
import numpy as np
import pytest
from packages import image_of
from stub_server import Servicer, answer, serving, until

from digits_client import AsyncDigitClient, Cancelled, DeadlineExceeded, InvalidImage, InvalidRequest, Overloaded
from digits_client._coalesce import Coalescer

BLANK = np.zeros(784, np.uint8)


def image(number):
    """Return the (784,) image that the stub server recognises as `number`."""
    pixels = np.zeros(784, np.uint8)
    pixels[0] = number
    return pixels


@pytest.fixture
def gate():
    """Requests wait at the server until it is set."""
    return threading.Event()


@pytest.fixture
def servicer(gate):
    def classify(request, context):
        assert gate.wait(20)
        return answer(request)

    return Servicer(classify)


@pytest.fixture
async def client(servicer, gate):
    with serving(servicer) as port:
        async with AsyncDigitClient(f"127.0.0.1:{port}", connections=1) as client:
            yield client
        gate.set()


async def test_calls_of_one_turn_travel_as_one(client, servicer, gate):
    """Calls that start together share one request, and each gets its own answer."""
    gate.set()
    numbers = np.random.default_rng(0).permutation(100)
    predictions = await asyncio.gather(*(client.classify(image(number)) for number in numbers))
    assert [prediction.digit for prediction in predictions] == numbers.tolist()
    assert servicer.sizes == [100]


async def test_calls_gather_while_others_are_under_way(client, servicer, gate, monkeypatch):
    """A lone call goes at once; with two requests under way further calls wait, and go together."""
    monkeypatch.setattr("digits_client._coalesce.MAX_DELAY_S", 1000)
    calls = []
    for number in range(20):
        calls.append(asyncio.create_task(client.classify(image(number))))
        await asyncio.sleep(0)
        if number < 2:
            await until(lambda sent=number + 1: len(servicer.sizes) == sent)
    gate.set()
    assert [prediction.digit for prediction in await asyncio.gather(*calls)] == list(range(20))
    assert servicer.sizes == [1, 1, 18]


async def test_a_stuck_request_does_not_hold_up_others(client, servicer, gate, monkeypatch):
    """Calls do not wait for ever for those under way to make room."""
    monkeypatch.setattr("digits_client._coalesce.MAX_DELAY_S", 0.01)
    calls = []
    for number in range(4):
        calls.append(asyncio.create_task(client.classify(image(number))))
        await until(lambda sent=number + 1: len(servicer.sizes) == sent)
    gate.set()
    await asyncio.gather(*calls)


async def test_a_bad_image_fails_alone(client, servicer, gate):
    """What can't be an image is refused here, before it travels with others."""
    gate.set()
    bad = [np.full(784, np.nan), np.full(784, 1.5), np.zeros(783), b"no picture"]
    results = await asyncio.gather(*(client.classify(it) for it in [*bad, image(7)]), return_exceptions=True)
    assert [type(result) for result in results[:-1]] == [InvalidImage] * 4
    assert results[-1].digit == 7
    assert sum(servicer.sizes) == 1


async def test_only_the_guilty_of_a_refused_request_fails(client, servicer, gate):
    """When the server refuses a shared request, the one image that it refuses is found; all others are answered."""

    def classify(request, context):
        if 13 in request.pixels[::784]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unlucky")
        return answer(request)

    servicer.classify = classify
    calls = (client.classify(image(number)) for number in range(32))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results.pop(13), InvalidRequest)
    assert [result.digit for result in results] == [number for number in range(32) if number != 13]
    assert len(servicer.sizes) == 1 + 2 * 5  # 32 images are halved five times


async def test_a_failed_request_fails_each_of_its_calls_with_its_own_error(client, servicer):
    """Callers share the fate of their request, not the exception: each has its own, with grpc's as the cause."""
    servicer.classify = lambda _, context: context.abort(grpc.StatusCode.INTERNAL, "out of order")
    errors = await asyncio.gather(*(client.classify(BLANK) for _ in range(3)), return_exceptions=True)
    assert {str(error) for error in errors} == {"INTERNAL: out of order"}
    assert len(set(map(id, errors))) == 3
    assert all(isinstance(error.__cause__, grpc.RpcError) for error in errors)


async def test_cancelling_one_does_not_hurt_the_others(client, servicer, gate):
    """One of three callers of a shared request leaves; the other two get their answers."""
    calls = [asyncio.create_task(client.classify(image(number))) for number in range(3)]
    await until(lambda: servicer.sizes == [3])
    calls[1].cancel()
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert (results[0].digit, results[2].digit) == (0, 2)
    assert isinstance(results[1], asyncio.CancelledError)


async def test_a_request_that_nobody_waits_for_is_cancelled(client, servicer):
    """When the last caller of a shared request leaves, the server is told."""
    ended = threading.Event()

    def classify(request, context):
        context.add_callback(ended.set)
        assert ended.wait(20)
        return answer(request)

    servicer.classify = classify
    calls = [asyncio.create_task(client.classify(BLANK)) for _ in range(3)]
    await until(lambda: servicer.sizes == [3])
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await until(ended.is_set)


async def test_calls_cancelled_before_they_go_are_not_sent(client, servicer, gate):
    """A caller who leaves while waiting takes the image along."""
    gate.set()
    calls = [asyncio.create_task(client.classify(image(number))) for number in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert servicer.sizes == [2]


async def test_each_caller_keeps_the_own_timeout(client, servicer, gate):
    """The impatient caller gives up in time; the patient one of the same request gets an answer."""
    impatient = asyncio.create_task(client.classify(image(1), timeout_s=0.05))
    patient = asyncio.create_task(client.classify(image(2), timeout_s=20))
    with pytest.raises(DeadlineExceeded):
        await impatient
    gate.set()
    assert (await patient).digit == 2
    assert servicer.sizes == [2]


async def test_floats_and_bytes_travel_apart(client, servicer, gate):
    """One request can't hold both forms, so there are two."""
    gate.set()
    images = [image(3), image(4) / 255, image(5)]
    predictions = await asyncio.gather(*map(client.classify, images))
    assert [prediction.digit for prediction in predictions] == [3, 4, 5]
    assert sorted(servicer.sizes) == [1, 2]


async def test_close_ends_waiting_calls_and_those_under_way(client, servicer, gate, monkeypatch):
    """Nobody waits for a closed client: not those who were sent, not those who were still waiting."""
    monkeypatch.setattr("digits_client._coalesce.MAX_DELAY_S", 1000)
    calls = []
    for number in range(4):
        calls.append(asyncio.create_task(client.classify(image(number))))
        await asyncio.sleep(0)
        if number < 2:
            await until(lambda sent=number + 1: len(servicer.sizes) == sent)
    await asyncio.sleep(0)
    await client.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Cancelled] * 4


async def test_an_overloaded_server_is_said_to_each(server):
    """A whole shared request that finds no room fails for all its callers, as worth a retry."""

    async def ask(*_):
        raise Overloaded(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    coalescer = Coalescer(ask, max_in_flight=1)
    deadline = asyncio.get_running_loop().time() + 20
    calls = (coalescer.classify(BLANK.tobytes(), deadline) for _ in range(2))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [error.retryable for error in errors] == [True, True]


async def test_a_fault_of_our_own_leaves_nobody_waiting():
    """Whatever goes wrong on the way reaches every caller."""

    async def ask(*_):
        raise ZeroDivisionError

    coalescer = Coalescer(ask, max_in_flight=1)
    deadline = asyncio.get_running_loop().time() + 20
    calls = (coalescer.classify(BLANK.tobytes(), deadline) for _ in range(2))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in errors] == [ZeroDivisionError] * 2


async def test_floats_do_not_wait_for_bytes(client, servicer, gate, monkeypatch):
    """However many images of the one form wait for room, one of the other is sent."""
    monkeypatch.setattr("digits_client._coalesce.MAX_DELAY_S", 1000)
    calls = []
    for number in range(5):
        calls.append(asyncio.create_task(client.classify(image(number))))
        await asyncio.sleep(0)
        if number < 2:
            await until(lambda sent=number + 1: len(servicer.sizes) == sent)
    calls.append(asyncio.create_task(client.classify(image(5) / 255)))
    await until(lambda: servicer.sizes == [1, 1, 1])
    gate.set()
    assert [prediction.digit for prediction in await asyncio.gather(*calls)] == list(range(6))
    assert servicer.sizes == [1, 1, 1, 3]


async def test_groups_are_bounded(monkeypatch):
    """At most 256 images travel as one; patience sends one group."""
    monkeypatch.setattr("digits_client._coalesce.MAX_DELAY_S", 1000)
    sizes, gates = [], []

    async def ask(images, _timeout_s):
        sizes.append(len(images))
        gates.append(asyncio.get_running_loop().create_future())
        return await gates[-1]

    coalescer = Coalescer(ask, max_in_flight=1)
    deadline = asyncio.get_running_loop().time() + 20
    calls = [asyncio.create_task(coalescer.classify(BLANK.tobytes(), deadline)) for _ in range(600)]
    await until(lambda: sizes)
    assert sizes == [256]
    coalescer._on_max_delay()
    await until(lambda: len(sizes) > 1)
    assert sizes == [256, 256]
    for gate in gates[:]:
        gate.set_exception(ZeroDivisionError())
    await until(lambda: len(sizes) > 2)
    assert sizes == [256, 256, 88]
    gates[2].set_exception(ZeroDivisionError())
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {ZeroDivisionError}


async def test_those_who_left_are_not_asked_for_again():
    """When a refused request is halved, only images that somebody still waits for are sent again."""
    sizes, calls = [], []

    async def ask(images, _timeout_s):
        sizes.append(len(images))
        for call in calls[2:]:
            call.cancel()
        await asyncio.sleep(0)
        raise InvalidRequest(grpc.StatusCode.INVALID_ARGUMENT, "no")

    coalescer = Coalescer(ask, max_in_flight=1)
    deadline = asyncio.get_running_loop().time() + 20
    calls += [asyncio.create_task(coalescer.classify(BLANK.tobytes(), deadline)) for _ in range(4)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [InvalidRequest] * 2 + [asyncio.CancelledError] * 2
    assert sizes == [4, 2, 1, 1]


async def test_many_tasks_get_their_own_answers(server):
    """Hundreds of tasks on a real server: no answer goes to another's caller."""
    digits = np.random.default_rng(1).integers(0, 10, 3000)
    async with AsyncDigitClient(server.address, timeout_s=60) as client:
        queue = iter(range(3000))
        answers = {}

        async def work():
            for index in queue:
                answers[index] = (await client.classify(image_of(digits[index]))).digit

        await asyncio.gather(*(work() for _ in range(256)))
    assert [answers[index] for index in range(3000)] == digits.tolist()
