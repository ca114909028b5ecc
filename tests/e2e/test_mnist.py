"""The shipped model on MNIST's 10,000 test images, through a real server."""

import numpy as np
import onnxruntime as ort
import pytest
from conftest import ROOT, mnist_test_set, start_server

from digits_client import DigitClient


@pytest.fixture(scope="module")
def server(tmp_path_factory, transport):
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("mnist"), f"--transport={transport}")
    yield server
    assert server.stop() == 0


def test_answers_are_onnxruntimes_own(server):
    """Over gRPC, as bytes and as floats, every image gets onnxruntime's own answer, and the stated accuracy is true."""
    images, labels = mnist_test_set()
    with DigitClient(server.address, timeout_s=30) as client:
        served = client.classify_many(images)
        as_floats = client.classify_many(images[:2000].astype(np.float32) / 255)
        stated = next(model.test_accuracy for model in client.models() if model.is_default)
    session = ort.InferenceSession(ROOT / "models" / served.model / served.version / "model.onnx")
    bare = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32) / 255})[0]
    np.testing.assert_array_equal(served.digits, bare.argmax(axis=1))
    np.testing.assert_allclose(served.probabilities, bare, atol=1e-5)
    np.testing.assert_allclose(as_floats.probabilities, served.probabilities[:2000], atol=1e-5)
    assert (served.digits == labels).mean() == pytest.approx(stated)


@pytest.mark.parametrize(("file", "digit"), [("2.png", 2), ("5.png", 5), ("7.png", 7), ("photo-of-4.jpg", 4)])
def test_samples_are_recognised(server, file, digit):
    """The sample pictures, a photo among them, show what their names say."""
    with DigitClient(server.address, timeout_s=30) as client:
        assert client.classify(ROOT / "docs/samples" / file).digit == digit
