"""How a server ends."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import grpc
import pytest
from conftest import start_server, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_server(toy_models, tmp_path, transport, number):
    """SIGTERM and SIGINT end it with status 0 and lines of JSON in the log."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-a", f"--transport={transport}")
    assert server.stop(number) == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    messages = [line["message"] for line in lines if line["logger"] == "digits_server.server"]
    assert messages[-2:] == ["draining", "drained"]


def test_signal_during_the_start_is_heard_between_two_models(tmp_path, transport):
    """A server that still loads its models has accepted nothing: it ends with status 0, and loads no more of them."""
    for number in range(1, 41):
        write_package(tmp_path / "models" / "toy" / str(number))
    command = [sys.executable, "-m", "digits_server", f"--transport={transport}", "--workers=1", "--grace-s=1"]
    command += ["--models", tmp_path / "models", "--default-model=toy", "--port=0", "--metrics-port=0"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stderr=file, stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: "model loaded" in log.read_text())
        process.terminate()
        assert process.wait(30) == 0
        assert not process.stdout.read()
    assert log.read_text().count("model loaded") < 40


def test_accepted_requests_are_answered_during_the_drain(toy_models, tmp_path, transport):
    """Requests in flight at SIGTERM are answered; whoever comes later is told UNAVAILABLE; nothing else happens."""
    # One request waits two seconds for company, so that it is surely in flight when the signal comes.
    server = start_server(
        toy_models, tmp_path, "--default-model=toy-a", f"--transport={transport}", "--max-wait-ms=2000"
    )
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        # grpcio closes a connection with its last call: what its client has not read by then may be lost. Keep it open.
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        request = pb.ClassifyRequest(pixels=image_of(6).tobytes(), version="1")
        calls = [stub.Classify.future(request, timeout=30) for _ in range(50)]
        wait_until(lambda: server.metric("digits_queue_depth") == 50)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.metric("digits_workers_ready") == 0)
        late = stub.Classify.future(request, timeout=30)
        # CANCELLED: it met the GOAWAY of gRPC's own server on the way.
        assert late.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert [list(call.result().digits) for call in calls] == [[6]] * 50
    assert server.process.wait(30) == 0


def test_health_turns_before_the_end(toy_models, tmp_path, transport):
    """A watcher sees NOT_SERVING before its stream ends, and does not hold the drain up."""
    server = start_server(
        toy_models, tmp_path, "--default-model=toy-a", f"--transport={transport}", "--max-wait-ms=3000", "--grace-s=30"
    )
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        request = pb.ClassifyRequest(pixels=image_of(6).tobytes())
        call = pb_grpc.DigitClassifierStub(channel).Classify.future(request, timeout=30)
        wait_until(lambda: server.metric("digits_queue_depth") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(urllib.error.HTTPError, match="503") as error:
            urllib.request.urlopen(f"{server.metrics_url}/readyz", timeout=20)
        error.value.close()
        assert list(call.result().digits) == [7]
    assert server.process.wait(20) == 0


def test_grace_bounds_the_drain(toy_models, tmp_path, transport):
    """A request that would outlast the grace is cut off, and the exit status is 1."""
    server = start_server(
        toy_models,
        tmp_path,
        "--default-model=toy-a",
        f"--transport={transport}",
        "--max-wait-ms=10000",
        "--grace-s=0.2",
    )
    with grpc.insecure_channel(server.address) as channel:
        request = pb.ClassifyRequest(pixels=image_of(6).tobytes())
        call = pb_grpc.DigitClassifierStub(channel).Classify.future(request, timeout=60)
        wait_until(lambda: server.metric("digits_queue_depth") == 1)
        assert server.stop() == 1
        assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_cancelled_stream_takes_its_messages_along(toy_models, tmp_path, transport):
    """What a cancelled stream had in the queue leaves it, and never runs."""
    server = start_server(
        toy_models, tmp_path, "--default-model=toy-a", f"--transport={transport}", "--max-wait-ms=10000"
    )
    with grpc.insecure_channel(server.address) as channel:
        message = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=image_of(6).tobytes(), version="1"))
        call = pb_grpc.DigitClassifierStub(channel).ClassifyStream(iter([message] * 10))
        wait_until(lambda: server.metric("digits_queue_depth") == 10)
        call.cancel()
        wait_until(lambda: server.metric("digits_queue_depth") == 0)
        assert server.metric("digits_batches_total") == 0
    assert server.stop() == 0
