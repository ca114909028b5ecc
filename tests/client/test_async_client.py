"""The asyncio client against a real server, and its likeness to the synchronous one."""

import asyncio
import inspect
import threading

import numpy as np
import pytest
from conftest import ROOT
from packages import image_of
from stub_server import Servicer, serving, until

from digits_client import (
    AsyncDigitClient,
    Cancelled,
    ClientClosed,
    DigitClient,
    InvalidImage,
    NotFound,
    Prediction,
    _requests,
)
from digits_client._requests import IMAGES_PER_CALL


@pytest.fixture
async def client(server):
    async with AsyncDigitClient(server.address, timeout_s=20) as client:
        yield client


def public(client):
    return {name: thing for name, thing in vars(client).items() if not name.startswith("_")}


def test_both_clients_have_the_same_methods():
    """Whoever knows one client knows the other: methods, arguments and defaults are the same."""
    sync, asynchronous = public(DigitClient), public(AsyncDigitClient)
    assert sorted(sync) == sorted(asynchronous)
    assert sorted(sync) == ["classify", "classify_many", "close", "health", "models", "read", "stream"]
    assert inspect.signature(DigitClient) == inspect.signature(AsyncDigitClient)
    for name in sync:
        mine, theirs = inspect.signature(sync[name]).parameters, inspect.signature(asynchronous[name]).parameters
        assert [(it.name, it.kind, it.default) for it in mine.values()] == [
            (it.name, it.kind, it.default) for it in theirs.values()
        ]
        assert theirs["self"]
        assert asynchronous[name].__doc__


async def test_all_calls(client):
    """One image, a file, many images, a number, models and health."""
    photo = ROOT / "docs/samples/photo-of-4.jpg"
    assert (await client.classify(image_of(3))).digit == 3
    assert (await client.classify(photo)).digit in range(10)  # the toy model knows no handwriting
    assert (await client.classify_many([image_of(3), photo])).digits[0] == 3
    assert len((await client.read(photo)).digits) == 1
    assert len(await client.models()) == 3
    assert await client.health()


async def test_classify_many_in_several_calls(client):
    """Thousands of images come back in order."""
    digits = np.random.default_rng(0).integers(0, 10, 3 * IMAGES_PER_CALL + 1)
    predictions = await client.classify_many(np.stack([image_of(digit) for digit in digits]))
    assert predictions.digits.tolist() == digits.tolist()


@pytest.mark.parametrize("images", [100, 5000])
async def test_classify_many_fails_as_a_whole(server, images):
    """One refused call ends the rest."""
    async with AsyncDigitClient(server.address, model="nope") as client:
        with pytest.raises(NotFound):
            await client.classify_many(np.zeros((images, 784), np.uint8))


async def images_from_somewhere():
    for digit in range(10):
        await asyncio.sleep(0)
        yield image_of(digit)


@pytest.mark.parametrize("images", [images_from_somewhere, lambda: map(image_of, range(10))])
async def test_stream(client, images):
    """Any iterator goes in, predictions come out in order."""
    assert [result.digit async for result in client.stream(images())] == list(range(10))


async def test_pictures_are_read_in_another_thread(client, monkeypatch):
    """Decoding a picture does not hold up the event loop, whichever call it is for; an array is read where it is."""
    prepare, threads = _requests.prepare, []

    def noted(image):
        threads.append(threading.current_thread() is threading.main_thread())
        return prepare(image)

    monkeypatch.setattr(_requests, "prepare", noted)
    photo = ROOT / "docs/samples/photo-of-4.jpg"
    await client.classify(photo)
    await client.classify_many([photo])
    assert [type(result) async for result in client.stream([photo, image_of(3)])] == [Prediction, Prediction]
    assert threads == [False, False, False, True]


async def test_stream_answers_before_the_images_end(client):
    """The next image may depend on the last answer, also where that was an error."""
    results = asyncio.Queue()

    async def images():
        for image in (image_of(1), b"no picture", image_of(2)):
            yield image
            await results.get()

    seen = []
    async for result in client.stream(images()):
        seen.append(result)
        results.put_nowait(result)
    assert [type(result) for result in seen] == [Prediction, InvalidImage, Prediction]


async def test_stream_raises_what_the_images_raise(client):
    """A fault of the caller's own iterator comes back to the caller, after the answers before it."""

    async def images():
        yield image_of(1)
        raise ZeroDivisionError

    stream = client.stream(images())
    assert (await anext(stream)).digit == 1
    with pytest.raises(ZeroDivisionError):
        await anext(stream)


async def test_close_ends_calls_in_flight():
    """Whoever still waits for an answer is told that the client was closed."""
    gate = threading.Event()
    servicer = Servicer(lambda *_: gate.wait(20))
    with serving(servicer) as port:
        client = AsyncDigitClient(f"127.0.0.1:{port}", timeout_s=60)
        call = asyncio.create_task(client.classify_many([image_of(1)]))
        await until(lambda: servicer.sizes)
        await client.close()
        with pytest.raises(Cancelled, match="the client was closed"):
            await call
        gate.set()
    with pytest.raises(ClientClosed):
        await client.health()


async def test_cancelling_classify_many_cancels_its_calls(client):
    """The caller's own cancellation is passed on as such."""
    call = asyncio.create_task(client.classify_many(np.zeros((5000, 784), np.uint8)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await client.health()


async def test_a_client_may_be_made_outside_the_event_loop():
    """Nothing is opened before the first call, so a module may hold a client; closing an unused one is fine."""
    client = await asyncio.to_thread(AsyncDigitClient)
    await client.close()
