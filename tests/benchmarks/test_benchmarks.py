"""The benchmarks, run for real, for so short that their figures mean nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load (Debian's nghttp2-client)"),
    pytest.mark.skipif(os.cpu_count() < 2, reason="needs two CPUs, one for the load"),
]


def benchmark(program, *arguments):
    """Run a benchmark; return its exit status and the lines of its table, by heading."""
    command = [sys.executable, ROOT / "benchmarks" / program, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
    assert "|" in done.stdout, done.stderr
    heading, _, *lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    return done.returncode, [dict(zip(heading, line, strict=True)) for line in lines]


def test_throughput_is_set_against_its_limit(tmp_path):
    """On each transport asked for, a scenario ends in a line with figures, the limit of the same run and a verdict."""
    scenario = "1 image, stream"
    arguments = ("bench", "--seconds=0.5", "--transports=grpcio", "--out", tmp_path, "--only", scenario)
    status, (line,) = benchmark("throughput.py", *arguments)
    (written,) = json.loads((tmp_path / "bench.json").read_text())["lines"]
    assert (status, line["transport"], line["calls of"]) == (0, "grpcio", scenario)
    assert min(written[name] for name in ("calls/s", "p50 ms", "CPU µs an image", "MB", "limit, calls/s")) > 0
    assert line["share"].endswith(("pass", "MISS"))


def test_all_transports_of_the_server_are_measured():
    """Unless told otherwise, benchmarks take the transports that the server offers, without the automatic choice."""
    code = "import harness; print(harness.transports())"
    run = (sys.executable, "-c", code)
    done = subprocess.run(run, check=True, cwd=ROOT / "benchmarks", capture_output=True, text=True)
    names = done.stdout.strip().split(",")
    assert "grpcio" in names
    assert "auto" not in names


def test_overload_is_judged():
    """Three times the capacity is offered; each promise ends in a line with what was measured and what is wanted."""
    status, lines = benchmark("overload.py", "--seconds=3", "--transports=grpcio", "--rows=64")
    assert len(lines) == 5
    assert status == any(line["verdict"] == "MISS" for line in lines)
    assert {line["transport"] for line in lines} == {"grpcio"}


def test_memory_is_watched():
    """A soak counts calls and compares memory; its exit status is its verdict."""
    status, (line,) = benchmark("soak.py", "--seconds=1", "--transports=grpcio")
    assert (status == 0) == (line["grew by at most 5 %"] == "pass")
    assert float(line["calls in all"].replace(",", "")) > 100


def test_pictures_are_read_by_both_models(tmp_path):
    """Each scene ends in a line a model, of digits as of numbers; what was read wrong is drawn if asked for."""
    status, lines = benchmark("pictures.py", "--count=30", "--sheets", tmp_path, "load_digits", "numbers")
    assert status == 0
    assert [(line["scene"], line["model"]) for line in lines] == [
        (scene, model) for scene in ("load_digits", "numbers") for model in ("digits-mlp", "digits-cnn")
    ]
    assert all(float(line["right %"]) > 60 for line in lines)
    has_faults = float(lines[0]["right %"]) < 100
    assert (tmp_path / "load_digits digits-mlp.png").exists() == has_faults
