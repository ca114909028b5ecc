"""What a server and a gateway log, line by line."""

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import grpc
import pytest
from conftest import start_server
from packages import image_of, write_package

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

sys.path.insert(0, str(Path(__file__).parent))  # for collector.py, which is not a test

from collector import Collector

NASTY = 'a\nb\r\x1b[31m\u2028{"level": "ERROR"}\0'
"""What somebody sends who wants to forge lines, colour terminals or break parsers."""


def lines(log):
    """Return the log's lines as dictionaries: each must be one JSON object of printable ASCII."""
    raw = log.split("\n")
    assert raw.pop() == ""
    assert all(line.isascii() and line.isprintable() for line in raw)
    return [json.loads(line) for line in raw]


def ask(server, *, ok=True, metadata=None, **fields):
    """Classify one image."""
    with grpc.insecure_channel(server.address) as channel:
        request = pb.ClassifyRequest(pixels=image_of(3).tobytes(), **fields)
        try:
            pb_grpc.DigitClassifierStub(channel).Classify(request, timeout=20, metadata=metadata)
        except grpc.RpcError:
            assert not ok
        else:
            assert ok


def rpcs(server):
    return [line for line in lines(server.log) if line["logger"] == "digits_server.rpc.access_log"]


def test_access_log_tells_who_asked_what(toy_models, tmp_path, transport):
    """With a sample of 1 each RPC is a line: method, code, time, peer, model, request id."""
    server = start_server(
        toy_models, tmp_path, "--default-model=toy-b", "--access-log-sample=1", f"--transport={transport}"
    )
    ask(server, request_id="order-66", model="toy-a")
    ask(server, ok=False, model="toy-c")
    assert server.stop() == 0
    first, second = rpcs(server)
    assert first["level"] == "INFO"
    assert first["message"] == "rpc"
    assert 0 < first["duration_s"] < 20
    assert first["peer"].startswith("ipv4:127.0.0.1:")
    names = ("method", "code", "model", "request_id")
    method = "digits.v1.DigitClassifier/Classify"
    assert [first[name] for name in names] == [method, "OK", "toy-a", "order-66"]
    assert [second.get(name) for name in names] == [method, "NOT_FOUND", "toy-c", None]


def test_access_log_is_off_unless_asked_for(toy_models, tmp_path):
    """By default no RPC is logged."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b")
    ask(server)
    assert server.stop() == 0
    assert rpcs(server) == []


def test_access_log_takes_a_sample(toy_models, tmp_path):
    """With a sample of a half about a half of the RPCs are logged."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", "--access-log-sample=0.5")
    with grpc.insecure_channel(server.address) as channel:
        for _ in range(200):
            pb_grpc.DigitClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=20)
    assert server.stop() == 0
    assert 50 < len(rpcs(server)) < 150  # a fair coin stays within by 7 standard deviations


def test_callers_cannot_forge_lines(toy_models, tmp_path, transport):
    """Line ends, control characters and JSON in what callers send stay within one line's strings, cut to a length."""
    server = start_server(
        toy_models, tmp_path, "--default-model=toy-b", "--access-log-sample=1", f"--transport={transport}"
    )
    ask(server, ok=False, model=NASTY, version=NASTY)
    ask(server, ok=False, request_id=NASTY + "x" * 10_000)
    assert server.stop() == 0
    of_model, of_id = rpcs(server)
    assert of_model["model"] == NASTY
    assert of_id["request_id"] == (NASTY + "x" * 10_000)[:128]
    assert len(lines(server.log)) == len(server.log.splitlines())


def test_internal_errors_are_found_by_request_and_trace(tmp_path, monkeypatch, transport):
    """The stack of a fault of ours is logged with the ids by which its caller knows the request."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    write_package(tmp_path / "models" / "toy" / "1")
    # Read by every Python that starts, also by one that is embedded.
    fault = "from digits_server.api import messages\nmessages.response = lambda *_: 1 / 0\n"
    (tmp_path / "sitecustomize.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "digits_server",
                f"--models={tmp_path / 'models'}",
                "--default-model=toy",
                "--port=0",
                "--metrics-port=0",
                "--workers=1",
                f"--transport={transport}",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process.stdout as output:
        address = output.readline().split()[3]
    trace = "ab" * 16
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        pb_grpc.DigitClassifierStub(channel).Classify(
            pb.ClassifyRequest(pixels=image_of(3).tobytes(), request_id="order-66"),
            metadata=(("traceparent", f"00-{trace}-{'cd' * 8}-01"),),
            timeout=20,
        )
    process.terminate()
    assert process.wait(30) == 0
    collector.close()
    (line,) = [line for line in lines((tmp_path / "log").read_text()) if line["level"] == "ERROR"]
    assert (line["trace_id"], line["request_id"]) == (trace, "order-66")
    assert line["fault_id"] in caught.value.details()
    assert "ZeroDivisionError" in line["exc_info"]


def test_gateway_logs_json(tmp_path):
    """The gateway's lines are JSON too, one for each request if asked for, whatever is in the path."""
    process = subprocess.Popen(
        [sys.executable, "-m", "digits_web", "--port=0", "--log-level=info"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        url = process.stdout.readline().split()[2].rstrip(",")
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            urllib.request.urlopen(f"{url}/{urllib.parse.quote(NASTY)}")
        error.value.close()
        process.terminate()
        (line,) = [line for line in lines(process.stderr.read()) if line["logger"] == "uvicorn.access"]
    assert "404" in line["message"]
    assert urllib.parse.quote(NASTY, safe="") in urllib.parse.quote(urllib.parse.unquote(line["message"]), safe="")
