"""The client against a real server."""

import itertools
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import start_server
from packages import image_of, write_package

from digits_client import (
    DeadlineExceeded,
    DigitClient,
    InvalidImage,
    InvalidRequest,
    NotFound,
    Overloaded,
    Prediction,
    Quality,
    ServerUnavailable,
)
from digits_client._channel import CLASSIFY


@pytest.fixture
def client(server):
    with DigitClient(server.address, timeout_s=20) as client:
        yield client


def test_classify(client):
    """One image gives digit, confidence, all probabilities, what is odd, who answered and how long it took."""
    prediction = client.classify(image_of(3))
    assert prediction.digit == 3
    assert prediction.confidence == pytest.approx(prediction.probabilities[3])
    assert prediction.probabilities.shape == (10,)
    assert not prediction.quality
    assert (prediction.model, prediction.version) == ("toy-b", "1")
    assert prediction.timing.batch_size == 1
    assert client.classify(np.zeros(784, np.uint8)).quality & Quality.BLANK


def test_floats_give_the_same(client):
    """A float image gets the answer of its bytes, to 1e-5."""
    image = image_of(3)
    np.testing.assert_allclose(
        client.classify(image / 255).probabilities, client.classify(image).probabilities, atol=1e-5
    )


@pytest.mark.parametrize("scale", [1, np.float32(1 / 255)])
def test_classify_many(client, scale):
    """Thousands of images go in as many calls as they need and come back as columns in order."""
    digits = np.random.default_rng(0).integers(0, 10, 2500)
    predictions = client.classify_many(np.stack([image_of(digit) for digit in digits]) * scale)
    assert len(predictions) == 2500
    assert predictions.digits.tolist() == digits.tolist()
    assert predictions.probabilities.shape == (2500, 10)
    np.testing.assert_array_equal(predictions.confidences, predictions.probabilities.max(axis=1))
    assert not predictions.quality.any()


def test_stream(client):
    """Predictions come in the order of the images; what is wrong with one stands in its place."""
    images = [image_of(1), b"no picture", image_of(2), np.full(784, 7.0), image_of(3)]
    results = list(client.stream(images))
    assert [type(result) for result in results] == [Prediction, InvalidImage, Prediction, InvalidImage, Prediction]
    assert [results[at].digit for at in (0, 2, 4)] == [1, 2, 3]
    assert "10 bytes" in str(results[1])


def test_stream_reports_what_the_server_refuses(server):
    """The server's own word on one image is an error in its place, too."""
    with DigitClient(server.address, model="nope") as client:
        assert [type(result) for result in client.stream([image_of(1)] * 2)] == [NotFound] * 2


def test_stream_without_end_can_be_left(client):
    """A stream that is left early ends, and the client works on."""
    stream = client.stream(image_of(digit % 10) for digit in itertools.count())
    assert [next(stream).digit for _ in range(30)] == [digit % 10 for digit in range(30)]
    stream.close()
    assert client.health()


def test_stream_raises_what_the_images_raise(client):
    """A fault of the caller's own iterator comes back to the caller, after the answers before it."""
    stream = client.stream(image_of(1) if good else 1 / 0 for good in (True, False))
    assert next(stream).digit == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_stream_fails_without_a_server():
    """What ends the stream itself is raised."""
    with DigitClient("127.0.0.1:1", timeout_s=5) as lost, pytest.raises(ServerUnavailable):
        next(lost.stream([image_of(1)]))


def test_threads_share_a_client(client):
    """Calls from many threads get their own answers."""
    digits = np.random.default_rng(0).integers(0, 10, 200)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda digit: client.classify(image_of(digit)).digit, digits))
    assert answers == digits.tolist()


def test_classify_many_fails_as_a_whole(server):
    """One refused call ends the rest."""
    with DigitClient(server.address, model="nope") as client, pytest.raises(NotFound):
        client.classify_many(np.zeros((5000, 784), np.uint8))


def test_model_and_version(server):
    """A client asks the model and version it was made for."""
    with DigitClient(server.address, model="toy-a", version="2") as client:
        assert client.classify(image_of(3)).digit == 4


def test_models(client):
    """The list of models tells which is the default."""
    assert [(model.name, model.version, model.is_default) for model in client.models()] == [
        ("toy-a", "1", False),
        ("toy-a", "2", False),
        ("toy-b", "1", True),
    ]


def test_models_tell_what_is_refused(tmp_path):
    """A version that serves has its costs by batch size, one that was refused the reason."""
    write_package(tmp_path / "toy" / "1")
    write_package(tmp_path / "toy" / "2", golden_error=0.01)
    server = start_server(tmp_path, tmp_path)
    with DigitClient(server.address) as client:
        good, bad = client.models()
    assert server.stop() == 0
    assert (good.state, good.is_serving, good.reason) == ("serving", True, "")
    assert 0 < good.batch_costs[1] < good.batch_costs[1024]
    assert (bad.state, bad.is_serving, dict(bad.batch_costs)) == ("refused", False, {})
    assert "golden" in bad.reason


def test_health(client):
    """A server that answers is healthy."""
    assert client.health()


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (NotFound, lambda address: DigitClient(address, model="nope").classify(image_of(1))),
        (InvalidRequest, lambda address: DigitClient(address, model="toy-a")._call(CLASSIFY, b"", 20)),
    ],
)
def test_refusals_have_their_class(server, error, call):
    """What the server refuses is told by the class; grpc's own error is its cause."""
    with pytest.raises(error) as raised:
        call(server.address)
    assert raised.value.__cause__ is not None


def test_overload_has_its_class(toy_models, tmp_path):
    """A server that has no room says so."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-a", "--max-queue=1")
    with DigitClient(server.address) as client, pytest.raises(Overloaded, match="2 more would exceed the queue's 1"):
        client.classify_many([image_of(1)] * 2)
    assert server.stop() == 0


def test_silence_ends_at_the_timeout():
    """A server that accepts the connection and never answers is given up at the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with DigitClient(address, timeout_s=0.3) as client, pytest.raises(DeadlineExceeded):
            client.classify(image_of(1))


def test_unreachable_server():
    """A server that is not there is said so within the deadline."""
    with DigitClient("127.0.0.1:1", timeout_s=5) as lost, pytest.raises(ServerUnavailable):
        lost.classify(image_of(1))
