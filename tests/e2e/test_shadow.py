"""New versions compared with the one that serves, in a real server."""

import json
import re

import grpc
import pytest
from conftest import start_server, wait_until
from packages import write_package
from traffic import Traffic

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


@pytest.fixture
def server(tmp_path, transport):
    """A server on toy/1 that compares new versions on recent images."""
    write_package(tmp_path / "models" / "toy" / "1")
    flags = [f"--transport={transport}", "--reload-s=0.1", "--shadow"]
    server = start_server(tmp_path / "models", tmp_path, *flags)
    yield server
    assert server.stop() == 0


def version_2(server):
    """Return the state of toy/2, and the reason."""
    with grpc.insecure_channel(server.address) as channel:
        models = pb_grpc.DigitClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=20).models
    return next(((model.state, model.reason) for model in models if model.version == "2"), (None, ""))


def test_agreeing_version_is_promoted(server, tmp_path):
    """It is compared on what callers have sent, then takes over, and no call notices."""
    with Traffic(server.address, bare=4) as traffic:
        pass
    with Traffic(server.address, bare=4) as after:
        write_package(tmp_path / "models" / "toy" / "2", sharpness=20)
        wait_until(lambda: version_2(server) == (pb.MODEL_STATE_SERVING, ""))
    (line,) = [line for line in map(json.loads, server.log.splitlines()) if line["message"] == "new version compared"]
    assert re.match(r"on [1-9]\d* recent images it agrees on 100.00%", line["shown"])
    assert all(call.answer == call.digit for call in [*traffic.calls, *after.calls])
    assert set(after.versions) == {"1", "2"}


def test_disagreeing_version_is_refused(server, tmp_path):
    """No caller ever gets its answers; log, metrics and ListModels tell why."""
    with Traffic(server.address, bare=4) as traffic:
        pass
    with Traffic(server.address, bare=4) as after:
        write_package(tmp_path / "models" / "toy" / "2", shift=1)
        wait_until(lambda: server.metric("digits_models_refused") == 1)
    state, reason = version_2(server)
    assert state == pb.MODEL_STATE_REFUSED
    assert re.match(r"on [1-9]\d* recent images it agrees on 0.00%", reason)
    assert "model refused" in server.log
    for calls in (traffic, after):
        assert calls.outcomes == {"right": calls.sent}
        assert calls.came_from("1")
