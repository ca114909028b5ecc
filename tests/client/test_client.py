"""The client against a real server."""

import socket

import numpy as np
import pytest
from conftest import start_server
from packages import image_of

from digits_client import (
    DeadlineExceeded,
    DigitClient,
    InvalidRequest,
    NotFound,
    Overloaded,
    Quality,
    ServerUnavailable,
)


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


def test_health(client):
    """A server that answers is healthy."""
    assert client.health()


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (NotFound, lambda address: DigitClient(address, model="nope").classify(image_of(1))),
        (InvalidRequest, lambda address: DigitClient(address).classify(np.full(784, 2.0))),
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
