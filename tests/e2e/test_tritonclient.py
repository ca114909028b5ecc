"""NVIDIA's own client for the Open Inference Protocol against the shipped model."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, mnist_test_set, start_server

from digits_client import DigitClient

ROWS = 125  # in each request of triton_calls.py


@pytest.fixture(scope="module")
def server(tmp_path_factory, transport):
    """A server on the shipped models with room for all images at once."""
    server = start_server(
        ROOT / "models", tmp_path_factory.mktemp("triton"), f"--transport={transport}", "--max-queue=10000"
    )
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def answers(server, tmp_path_factory):
    """Return what tritonclient and `Classify` said about the 10,000 test images, and the images' labels."""
    images, labels = mnist_test_set()
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, images)
    script = [sys.executable, "-W", "error", ROOT / "tests/e2e/triton_calls.py", server.address, file]
    done = subprocess.run(script, check=False, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    with DigitClient(server.address, timeout_s=30) as client:
        classified = client.classify_many(images)
    return json.loads(done.stdout), classified, labels


def test_every_test_image_gets_the_answer_of_classify(answers):
    """10,000 images as bytes, and as floats on the asyncio client: the digits and numbers that `Classify` gives."""
    said, classified, labels = answers
    assert len(labels) == 10_000
    assert said["sync"]["digits"] == said["aio"]["digits"] == classified.digits.tolist()
    np.testing.assert_allclose(said["sync"]["probabilities"], classified.probabilities, atol=1e-5)
    np.testing.assert_allclose(said["sync"]["confidences"], classified.confidences, atol=1e-5)
    assert (said["sync"]["digits"] == labels).mean() > 0.99


def test_readiness_and_metadata(answers):
    """What a client asks before it starts is answered: readiness, versions, the input and the outputs."""
    said, _, _ = answers
    for asked in ("sync", "aio"):
        assert [said[asked][what] for what in ("live", "ready", "model ready")] == [True] * 3
        assert said[asked]["server"]["name"] == "digits-server"
        model = said[asked]["model"]
        assert (model["name"], model["versions"], model["platform"]) == ("digits-mlp", ["3"], "onnx_onnxv1")
        assert model["inputs"] == [{"name": "vectors", "datatype": "UINT8", "shape": ["-1", "784"]}]
        assert [output["name"] for output in model["outputs"]] == [
            "probabilities",
            "digits",
            "confidences",
            "quality_flags",
        ]
    assert (said["sync"]["version ready"], said["sync"]["other ready"]) == (True, False)


def test_extensions_that_tools_ask(answers):
    """The configuration, the index, and statistics that count every image and request that has been answered."""
    said, _, labels = answers
    assert said["sync"]["server"]["extensions"] == ["model_configuration", "model_repository", "statistics"]
    config = said["sync"]["config"]
    assert (config["name"], config["max_batch_size"]) == ("digits-mlp", 10_000)
    assert config["input"] == [{"name": "vectors", "data_type": "TYPE_UINT8", "dims": ["784"]}]
    assert config["output"][0] == {"name": "probabilities", "data_type": "TYPE_FP32", "dims": ["10"]}
    batch = int(config["dynamic_batching"]["preferred_batch_size"][0])
    [statistics] = said["sync"]["statistics"]
    runs, spent = len(labels) // ROWS * -(-ROWS // batch), statistics["inference_stats"]
    assert (statistics["name"], statistics["version"]) == ("digits-mlp", "3")
    assert int(statistics["inference_count"]) == len(labels)
    assert int(statistics["execution_count"]) == runs
    assert {int(duration["count"]) for duration in spent.values()} == {runs}
    assert int(spent["success"]["ns"]) == int(spent["queue"]["ns"]) + int(spent["compute_infer"]["ns"]) > 0
    assert said["sync"]["all statistics"] == ["digits-cnn", "digits-mlp"]
    assert [(model["name"], model["version"], model["state"]) for model in said["sync"]["index"]] == [
        ("digits-cnn", "3", "READY"),
        ("digits-mlp", "3", "READY"),
    ]


def test_what_belongs_to_a_request_comes_back(answers):
    """Ids come back, an output asked for comes alone, the time spent is told, and errors keep status and words."""
    said, _, _ = answers
    assert said["sync"]["ids"] == ["part 0", "part 1"]
    assert said["sync"]["parameters"] == ["batch_size", "inference_seconds", "queue_seconds"]
    assert said["aio"]["outputs"] == ["digits"]
    status, message = said["sync"]["refused"]
    assert status == "StatusCode.NOT_FOUND"
    assert message.startswith("model: 'other' is not served; there are ['digits-cnn', 'digits-mlp']")


def test_documented_example_runs(server):
    """The example in docs/open-inference.md runs as it is written, but for the address."""
    text = (ROOT / "docs/open-inference.md").read_text()
    code = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    script = [sys.executable, "-W", "error", "-c", code.replace("127.0.0.1:50051", server.address)]
    done = subprocess.run(script, check=True, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"\[\d \d\] \[0\.\d+ 0\.\d+\]\n", done.stdout)
