"""The benchmark, run for real, for so short that its figures mean nothing."""

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


def test_benchmark_measures_every_workload(tmp_path):
    """Each workload ends in a line with what was measured, the limit of the same run and a verdict; and in a plot."""
    short = ("--seconds=1", "--steady-s=2", "--calls=2000", "--transports=grpcio")
    command = [sys.executable, ROOT / "loadtests/bench.py", *short, "--out", tmp_path]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout
    bars = json.loads((tmp_path / "bench.json").read_text())["bars"]
    assert len(bars) == 13
    assert all(bar["measured"] >= 0 and bar["limit"] > 0 for bar in bars)
    assert output.count("pass") + output.count("MISS") == 13
    drawn = json.loads((tmp_path / "bench.json").read_text())["grpcio"]
    assert sum(drawn["batch_sizes"].values()) > 0
    assert len(drawn["latencies"]) == 4
    assert (tmp_path / "bench.png").stat().st_size > 1000
