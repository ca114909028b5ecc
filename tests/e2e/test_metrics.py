"""What a scrape of a real server shows."""

import re
import urllib.error
import urllib.request

import grpc
import pytest
from conftest import start_server
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


@pytest.fixture(scope="module")
def server(toy_models, tmp_path_factory, transport):
    """A server of its own, so that what is counted is known."""
    flags = ["--default-model=toy-a", f"--transport={transport}"]
    server = start_server(toy_models, tmp_path_factory.mktemp("metrics"), *flags)
    yield server
    assert server.stop() == 0


def get(url):
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.status, response.read().decode()


def samples(server, name):
    """Return {labels: value} of one sample name."""
    _, text = get(f"{server.metrics_url}/metrics")
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_calls_are_counted_by_code_and_phase(server):
    """After known traffic the counters hold exactly that traffic."""
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        for _ in range(3):
            stub.Classify(pb.ClassifyRequest(pixels=image_of(3).tobytes() * 2, version="1"), timeout=20)
        with pytest.raises(grpc.RpcError):
            stub.Classify(pb.ClassifyRequest(pixels=b"x"), timeout=20)
    labels = 'grpc_method="Classify",grpc_service="digits.v1.DigitClassifier",grpc_type="unary"'
    handled = samples(server, "grpc_server_handled_total")
    assert {labels: count for labels, count in handled.items() if count} == {
        f'grpc_code="OK",{labels}': 3,
        f'grpc_code="INVALID_ARGUMENT",{labels}': 1,
    }
    assert samples(server, "grpc_server_handling_seconds_count")[labels] == 4
    assert samples(server, "digits_predictions_total")['digit="3",model="toy-a"'] == 6
    assert samples(server, "digits_batch_size_sum") == {'model="toy-a"': 6, 'model="toy-b"': 0}
    assert samples(server, "digits_inference_seconds_count")['model="toy-a"'] == 3
    assert samples(server, "digits_batches_total") == {'model="toy-a",release="joined"': 3}
    for histogram in ("digits_queue_seconds", "digits_confidence"):
        assert samples(server, f"{histogram}_count")['model="toy-a"'] == {"digits_queue_seconds": 3}.get(histogram, 6)
    assert samples(server, "digits_queue_depth")['model="toy-a",version="1"'] == 0
    assert samples(server, "digits_model_info") == {
        f'model="{model}",version="{version}"': 1 for model, version in [("toy-a", 1), ("toy-a", 2), ("toy-b", 1)]
    }
    assert all(gain >= 1 for gain in samples(server, "digits_batching_gain").values())


def test_refusals_are_counted(toy_models, tmp_path, transport):
    """Each call that a full queue refuses is counted, with the reason."""
    flags = ["--default-model=toy-a", f"--transport={transport}", "--max-queue=8"]
    server = start_server(toy_models, tmp_path, *flags)
    refused, request = 0, pb.ClassifyRequest(pixels=image_of(3).tobytes() * 5)
    with grpc.insecure_channel(server.address) as channel:
        while not refused:
            calls = [pb_grpc.DigitClassifierStub(channel).Classify.future(request, timeout=20) for _ in range(64)]
            refused = [call.code() for call in calls].count(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert samples(server, "digits_rejected_total") == {'reason="queue_full"': refused}
    assert server.stop() == 0


def test_probes(server):
    """Liveness and readiness answer 200; other pages do not exist."""
    assert get(f"{server.metrics_url}/healthz") == (200, "event loop: yes\n")
    assert get(f"{server.metrics_url}/readyz") == (200, "ready: yes\n")
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        get(f"{server.metrics_url}/other")
    error.value.close()


@pytest.mark.parametrize("path", ["metrics", "healthz", "readyz"])
def test_head_is_answered(server, path):
    """HEAD gets the status and the headers of GET, and no body."""
    with urllib.request.urlopen(
        urllib.request.Request(f"{server.metrics_url}/{path}", method="HEAD"), timeout=20
    ) as response:
        assert response.status == 200
        assert int(response.headers["content-length"]) > 0
        assert response.read() == b""
