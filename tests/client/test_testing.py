"""What we ship for our users' tests."""

import asyncio
import subprocess
import sys

import grpc
import numpy as np
import pytest
from conftest import ROOT

from digits_client import (
    AsyncDigitClient,
    ClientClosed,
    DeadlineExceeded,
    DigitClient,
    InvalidImage,
    NotFound,
    Prediction,
    testing,
)

IMAGE = np.zeros((28, 28), np.uint8)


def by_first_pixel(image):
    """Answer the first pixel's value; 99 is not found."""
    if image[0, 0] == 99:
        raise NotFound(grpc.StatusCode.NOT_FOUND, "no such thing")
    return int(image[0, 0])


def image(number):
    pixels = IMAGE.copy()
    pixels[0, 0] = number
    return pixels


def test_fake():
    """The fake is a client that answers as it was told, and remembers what it was asked."""
    with testing.FakeDigitClient(by_first_pixel, model="mine") as client:
        assert isinstance(client, DigitClient)
        assert client.classify(image(4)).digit == 4
        assert client.classify_many([image(1), image(2)]).digits.tolist() == [1, 2]
        assert client.classify(image(4)).model == "mine"
        assert client.models()[0].is_serving
        assert client.health()
        assert [it[0, 0] for it in client.images] == [4, 1, 2, 4]
    with pytest.raises(ClientClosed):
        client.health()


def test_fake_refuses_as_the_real_one():
    """Images are checked, errors are raised, or yielded by a stream."""
    client = testing.FakeDigitClient(by_first_pixel)
    with pytest.raises(InvalidImage):
        client.classify(np.zeros(3))
    with pytest.raises(NotFound):
        client.classify(image(99))
    kinds = [type(result) for result in client.stream([image(1), image(99), b"no picture"])]
    assert kinds == [Prediction, NotFound, InvalidImage]


def test_fake_answers_probabilities():
    """An answer may be ten probabilities; floats are seen as floats."""
    client = testing.FakeDigitClient([0.1] * 4 + [0.6] + [0.0] * 5)
    prediction = client.classify(image(1) / 255)
    assert (prediction.digit, prediction.confidence) == (4, pytest.approx(0.6))
    assert client.images[0].dtype == np.float32


def test_fake_answers_what_argmax_returns():
    """A class may be one of numpy's integers."""
    client = testing.FakeDigitClient(np.argmax)
    assert client.classify(image(4).T).digit == 0


@pytest.mark.parametrize("named", [{"model": "mine"}, {"version": "3"}, {"model": "mine", "version": "3"}])
def test_fake_labels_whatever_model_is_asked(named):
    """Its classes keep their names when a model or a version is named."""
    client = DigitClient(transport=testing.FakeTransport(2, labels="abc"), **named)
    assert client.classify(IMAGE).label == "c"
    assert [it.is_default for it in client.models()] == [True, False]


async def test_async_fake():
    """The asyncio fake does the same; concurrent calls are merged as by the real one."""
    async with testing.FakeAsyncDigitClient(by_first_pixel) as client:
        assert isinstance(client, AsyncDigitClient)
        predictions = await asyncio.gather(*(client.classify(image(number)) for number in range(10)))
        assert [it.digit for it in predictions] == list(range(10))
        assert {it.timing.batch_size for it in predictions} == {10}
        assert (await client.classify_many([image(3)])).digits.tolist() == [3]
        kinds = [type(it) async for it in client.stream([image(1), image(99), b"no picture"])]
        assert kinds == [Prediction, NotFound, InvalidImage]
        assert await client.health()
        assert (await client.models())[0].name == "fake"


def test_any_transport_carries_a_client():
    """`transport=` takes an object of the user's own; its errors are the call's, and it is closed with the client."""

    class Flaky(testing.FakeTransport):
        is_closed = False

        def call(self, method, request, timeout_s):
            if method.endswith("/Classify") and timeout_s < 1:
                raise DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")
            return super().call(method, request, timeout_s)

        def close(self):
            self.is_closed = True

    transport = Flaky(2, labels="abc")
    with DigitClient(transport=transport) as client:
        assert client.classify(IMAGE).label == "c"
        with pytest.raises(DeadlineExceeded, match="too late"):
            client.classify(IMAGE, timeout_s=0.5)
    assert transport.is_closed


async def test_one_transport_serves_both_clients():
    """The fake's images are remembered whichever client sent them."""
    transport = testing.FakeTransport(3)
    assert DigitClient(transport=transport).classify(IMAGE).digit == 3
    async with AsyncDigitClient(transport=transport) as client:
        assert (await client.classify(IMAGE)).digit == 3
    assert len(transport.images) == 2


USERS_PROGRAM = """
import asyncio
from pathlib import Path
import numpy as np
from digits_client import AsyncDigitClient, DigitClient, DigitsError, Prediction, Tls
from digits_client.testing import FakeDigitClient

def names(client: DigitClient, folder: Path) -> list[int]:
    results = client.stream(folder.iterdir())
    return [result.digit for result in results if isinstance(result, Prediction)]

async def main() -> float:
    async with AsyncDigitClient(["10.0.0.1:1", "10.0.0.2:1"], tls=Tls(ca="ca.pem"), token="t") as client:
        one, other = await asyncio.gather(client.classify("a.png"), client.classify(np.zeros((28, 28))))
        many = await client.classify_many(np.zeros((5, 784), np.uint8))
        async for result in client.stream([b""]):
            if isinstance(result, DigitsError):
                raise result
            reveal_type(result)
        return one.confidence + float(many.confidences.mean()) + (await client.models())[0].test_accuracy

names(FakeDigitClient(7), Path())
DigitClient(timeout_s="5")
"""


def test_users_get_types(tmp_path):
    """Strict mypy is content with a right program, and finds the one wrong argument."""
    (tmp_path / "program.py").write_text(USERS_PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=.mypy", "program.py"]
    paths = ":".join(str(ROOT / name) for name in ("client", "proto"))
    result = subprocess.run(
        command,
        check=False,
        cwd=tmp_path,
        env={"MYPYPATH": paths, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=110,
    )
    errors = [line for line in result.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, result.stdout
    assert 'Argument "timeout_s" to "DigitClient" has incompatible type "str"' in errors[0]
    assert 'Revealed type is "digits_client._results.Prediction"' in result.stdout
