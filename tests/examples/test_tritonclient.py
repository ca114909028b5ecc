"""The example for tritonclient runs as its readers would run it."""

import subprocess
import sys

import pytest
from conftest import ROOT, mnist_test_set, start_server


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a server on the shipped models."""
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("server"))
    yield server.address
    assert server.stop() == 0


def classify(file, address):
    command = [sys.executable, "-W", "error", ROOT / "examples/tritonclient/classify.py", file, address]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_tritonclient_classifies(address, tmp_path):
    """Three images in, three digits out."""
    images, labels = mnist_test_set()
    (tmp_path / "image.bin").write_bytes(images[:3].tobytes())
    result = classify(tmp_path / "image.bin", address)
    assert [int(line.split()[0]) for line in result.stdout.splitlines()] == labels[:3].tolist(), result.stderr


def test_tritonclient_reports_what_is_wrong(address, tmp_path):
    """The server's own words reach the user; exit status 1."""
    (tmp_path / "image.bin").write_bytes(b"")
    result = classify(tmp_path / "image.bin", address)
    assert result.returncode == 1
    assert "inputs[0].shape: expected one of [n, 784]" in result.stderr
