"""Triton's own load generator against the shipped models."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, start_server

INSTALLED = Path(sys.prefix) / "perf_analyzer"
PROGRAM = shutil.which("perf_analyzer") or shutil.which(INSTALLED / "bin/perf_analyzer")
REQUESTS = 200

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="perf_analyzer is missing: apt-get install libb64-0d, then make .venv/perf_analyzer"
)


@pytest.mark.parametrize("batch", [1, 64])
def test_runs_as_against_triton(tmp_path, transport, batch):
    """It finds the model, sends what it generates, and accounts for every image that two workers have answered."""
    server = start_server(ROOT / "models", tmp_path, f"--transport={transport}", "--workers=2")
    libraries = f"{INSTALLED / 'nvidia/cuda_runtime/lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    done = subprocess.run(
        [
            *(PROGRAM, "-m", "digits-mlp", "-i", "grpc", "-u", server.address),
            *("-b", str(batch), "--request-count", str(REQUESTS)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"Request count: {REQUESTS}\n", done.stdout)
    by_server = re.search(
        r"Inference count: (\d+)\n\s+Execution count: (\d+)\n\s+Successful request count: (\d+)\n"
        r"\s+Avg request latency: (\d+) usec .*compute infer (\d+) usec",
        done.stdout,
    )
    images, runs, answered, latency_us, inference_us = map(int, by_server.groups())
    assert images == answered * batch
    assert answered >= runs > 0
    assert latency_us >= inference_us > 0
    assert server.metric('digits_batch_size_sum{model="digits-mlp"}') >= REQUESTS * batch
    assert server.stop() == 0
