"""New versions on trial beside live traffic, in one process and in several."""

import json
import os
import signal

import grpc
import pytest
from conftest import start_server, wait_until
from packages import write_package
from traffic import Traffic

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def server(request, tmp_path, transport):
    """A server on toy/1 that tries new versions on 300 images; costs don't matter to it."""
    write_package(tmp_path / "models" / "toy" / "1")
    flags = [f"--transport={transport}", f"--workers={request.param}", "--reload-s=0.1", "--shadow"]
    server = start_server(tmp_path / "models", tmp_path, *flags, "--shadow-images=300", "--shadow-cost=1000")
    yield server
    assert server.stop() == 0


def version_2(server):
    """Return the state of toy/2, and the reason, as whichever worker is asked knows it."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        models = pb_grpc.DigitClassifierStub(channel).ListModels(pb.ListModelsRequest(), timeout=20).models
    return next(((model.state, model.reason) for model in models if model.version == "2"), (None, ""))


def trials_over(server):
    """Return whether each process' log says that its trial is over, and with which result."""
    lines = [json.loads(line) for line in server.log.splitlines()]
    return [line["promoted"] for line in lines if line["message"] == "trial over"]


def processes(server):
    return max(1, len(server.children()))


def test_agreeing_version_is_promoted(server, tmp_path):
    """It answers nobody before enough live images have been compared, by all workers together; then everybody."""
    with Traffic(server.address, bare=4) as traffic:
        write_package(tmp_path / "models" / "toy" / "2", sharpness=20)
        wait_until(lambda: len(trials_over(server)) == processes(server))
        images = server.metric("digits_shadow_images_total")
        assert images >= 300
        assert server.metric("digits_shadow_agreed_total") == images
        assert 0 < server.metric("digits_shadow_variation_total") < images
        assert server.metric('digits_shadow_seconds_total{model="toy",of="shadow"') > 0
    assert trials_over(server) == [True] * processes(server)
    assert version_2(server) == (pb.MODEL_STATE_SERVING, "")
    assert all(call.answer == call.digit for call in traffic.calls)
    assert set(traffic.versions) == {"1", "2"}


def test_disagreeing_version_is_refused(server, tmp_path):
    """No caller ever gets its answers; log, metrics and ListModels tell why, in all processes the same."""
    with Traffic(server.address, bare=4) as traffic:
        write_package(tmp_path / "models" / "toy" / "2", shift=1)
        wait_until(lambda: len(trials_over(server)) == processes(server))
        wait_until(lambda: server.metric("digits_models_refused") == 1)
        assert server.metric("digits_shadow_agreed_total") == 0
    assert trials_over(server) == [False] * processes(server)
    state, reason = version_2(server)
    assert state == pb.MODEL_STATE_REFUSED
    assert reason.startswith("on trial it agrees on 0.00% of ")
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1")


def test_replaced_worker_knows_the_verdicts(tmp_path, transport):
    """A worker that starts later neither serves what has been refused nor tries it again."""
    write_package(tmp_path / "models" / "toy" / "1")
    server = start_server(
        tmp_path / "models",
        tmp_path,
        *(f"--transport={transport}", "--workers=2", "--reload-s=0.1"),
        *("--shadow", "--shadow-images=50", "--shadow-cost=1000"),
    )
    with Traffic(server.address) as traffic:
        write_package(tmp_path / "models" / "toy" / "2", shift=1)
        wait_until(lambda: len(trials_over(server)) == 2)
    assert traffic.outcomes == {"right": traffic.sent}
    first = server.workers()[0]
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: first not in server.workers() and len(server.workers()) == 2)
    with Traffic(server.address, bare=8) as traffic:
        pass
    assert traffic.outcomes == {"right": traffic.sent}
    assert traffic.came_from("1")
    assert trials_over(server) == [False] * 3
    assert server.stop() == 0
