"""Short real runs of Locust: what makes them pass and fail. None of these looks at a clock's figures."""

import json
import re
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
def run(tmp_path):
    """Return what runs a command of Locust until there were calls of each kind: its exit status, output and results."""

    def run(*command):
        slo, results = tmp_path / "slo.toml", tmp_path / "results.json"
        slo.write_text(SLO)
        first, *arguments = command
        files = f"{LOADTESTS / 'locustfile.py'},{Path(__file__).with_name('enough.py')}"
        settings = ("--locustfile", files, "--users", "8", "--spawn-rate", "8", "--run-time", "60s")
        done = subprocess.run(
            [sys.executable, *first, *settings, "--slo", slo, "--results", results, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, json.loads(results.read_text()) if results.exists() else None

    return run


@pytest.fixture
def run_locust(run):
    """Return what runs Locust against a server."""
    return lambda host, *arguments: run(("-m", "locust", "--headless", "--host", host), *arguments)


def test_load_test_brings_its_own_server(run, tmp_path):
    """`make loadtest` needs nothing but itself: it starts a server, reports as a page, too, and stops the server."""
    report = tmp_path / "report.html"
    status, output, results = run((LOADTESTS / "run.py",), "--html", report)
    assert (status, results["passed"]) == (0, True), output
    assert "batch-64" in report.read_text()
    host, port = re.search(r"ready: gRPC (\S+):(\d+) ", output).groups()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 20)


def test_load_test_ends_with_its_server(run, monkeypatch):
    """A server that can't start ends the load test with its own exit status, before any call."""
    monkeypatch.setenv("DIGITS_SERVER_TRANSPORT", "pigeon")
    assert run((LOADTESTS / "run.py",)) == (2, "", None)


def test_shapes_share_the_run_time():
    """A ramp doubles the users, a spike is a moment of all between two of a tenth, a soak has ten equal parts."""
    code = "import shapes; print([[(it.users, round(it.length_s)) for it in shape().stages(60, 100)] for shape in "
    code += "(shapes.Ramp, shapes.Spike, shapes.Soak)])"  # not in this process: Locust exchanges its sockets
    done = subprocess.run([sys.executable, "-c", code], cwd=LOADTESTS, stdout=subprocess.PIPE, text=True, check=True)
    ramp, spike, soak = json.loads(done.stdout.replace("(", "[").replace(")", "]"))
    assert ramp == [[users, 17] for users in (1, 2, 4, 8, 16, 32)]
    assert spike == [[6, 40], [60, 20], [6, 40]]
    assert soak == [[60, 10]] * 10


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


def test_ramp_measures_each_level(mnist_server, run_locust, tmp_path):
    """A ramp of master and workers measures one user, then two, and draws them; the memory of the server is watched."""
    ramp = (
        "--shape",
        "ramp",
        "--users",
        "2",
        "--run-time",
        "12s",
        "--plot",
        tmp_path / "saturation.png",
        "--processes",
        "2",
    )
    watched = ("--server-metrics", f"{mnist_server.metrics_url}/metrics")
    status, output, results = run_locust(mnist_server.address, *ramp, *watched, "UnaryUser")
    assert status == 0, output
    assert [level["users"] for level in results["levels"]] == [1, 2]
    assert all(level["figures"]["unary"]["rate"] > 0 and level["memory_mb"] > 20 for level in results["levels"])
    assert "saturation" in output
    assert (tmp_path / "saturation.png").exists()


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
