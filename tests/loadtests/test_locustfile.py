"""Short real runs of Locust: what makes them pass and fail. None of these looks at a clock's figures."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, start_server

LOADTESTS = ROOT / "loadtests"
SLO = """
[unary]
max_error_share = 0
[batch-64]
max_error_share = 0
[stream]
max_error_share = 0
[oip]
max_error_share = 0
[sdk]
max_error_share = 0
["unary queue"]
min_p50_ms = 0
[answers]
max_sigmas_above_model = 4
"""


@pytest.fixture(scope="module")
def mnist_server(tmp_path_factory):
    """A server with the shipped models."""
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("mnist"))
    yield server
    server.stop()


@pytest.fixture
def run_locust(tmp_path):
    """Return what runs Locust for a moment and gives its exit status, output and results."""

    def run(host, *arguments):
        slo, results = tmp_path / "slo.toml", tmp_path / "results.json"
        slo.write_text(SLO)
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("locust"), "--locustfile", LOADTESTS / "locustfile.py", "--headless"),
                *("--host", host, "--users", "8", "--spawn-rate", "8", "--run-time", "2s"),
                *("--slo", slo, "--results", results, *arguments),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, json.loads(results.read_text())

    return run


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["alone", "master and 2 workers"])
def test_right_answers_pass(mnist_server, run_locust, processes):
    """The shipped model passes, and each image of each call is counted once, in one process or in several."""
    status, output, results = run_locust(mnist_server.address, *processes)
    assert (status, results["passed"], results["model"]["name"]) == (0, True, "digits-mlp")
    assert "\nPASS\n" in output
    figures = results["figures"]
    calls = {name: figures[name]["calls"] for name in ("unary", "batch-64", "stream", "oip", "sdk")}
    assert all(calls.values())
    assert figures["answers"]["images"] == sum(calls.values()) + 63 * calls["batch-64"]
    assert {
        figures[f"{name} {phase}"]["calls"] == calls[name] for name in calls for phase in ("queue", "inference")
    } == {True}


def test_ramp_measures_each_level(mnist_server, run_locust, tmp_path):
    """A ramp of master and workers measures one user, then two, and draws them; the memory of the server is watched."""
    ramp = ("--shape", "ramp", "--users", "2", "--run-time", "8s", "--plot", tmp_path / "knee.png", "--processes", "2")
    watched = ("--server-pid", str(mnist_server.process.pid))
    status, output, results = run_locust(mnist_server.address, *ramp, *watched, "UnaryUser")
    assert status == 0, output
    assert [level["users"] for level in results["levels"]] == [1, 2]
    assert all(level["figures"]["unary"]["rate"] > 0 and level["memory_mb"] > 20 for level in results["levels"])
    assert "knee" in output
    assert (tmp_path / "knee.png").exists()


def test_worse_than_another_run_fails(mnist_server, run_locust, tmp_path):
    """A run that passes its objectives fails if it is worse than the one it is compared with."""
    before = tmp_path / "before.json"
    before.write_text(json.dumps({"run": {}, "figures": {"unary": {"rate": 1e9}}}))
    status, output, results = run_locust(mnist_server.address, "UnaryUser", "--against", before)
    assert (status, results["passed"]) == (1, False)
    assert {row["passed"] for row in results["objectives"]} == {True}
    assert "WORSE" in output


def test_wrong_answers_fail(server, run_locust):
    """A server that answers every call fails the run if its answers are wrong more often than its model claims."""
    status, output, results = run_locust(server.address)  # the toy model claims half, and knows no MNIST
    assert (status, results["passed"], results["errors"]) == (1, False, {})
    assert "\nFAIL\n" in output
    assert [row["workload"] for row in results["objectives"] if not row["passed"]] == ["answers"]


def test_failed_calls_are_counted_by_status(run_locust):
    """Calls that fail are counted under the name of their status, and fail the run."""
    with socket.socket() as bound:  # bound and not listening: nobody else gets the port, and nobody answers
        bound.bind(("127.0.0.1", 0))
        status, output, results = run_locust(f"127.0.0.1:{bound.getsockname()[1]}", "UnaryUser")
    assert (status, results["passed"]) == (1, False)
    assert set(results["errors"]) == {"unary: UNAVAILABLE"}
    assert results["figures"]["unary"]["error_share"] == 1
    assert " x gRPC unary: UNAVAILABLE" in output
