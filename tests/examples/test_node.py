"""The example for Node.js runs as its readers would run it."""

import shutil
import subprocess

import pytest
from conftest import ROOT
from packages import image_of

EXAMPLE = ROOT / "examples" / "node"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a copy of the example with its dependencies installed."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in ("package.json", "classify.js"):
        shutil.copy(EXAMPLE / file, folder)
    install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
    try:
        done = subprocess.run(install, check=False, cwd=folder, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not install the dependencies within 90 s")
    if done.returncode:
        pytest.skip(f"npm could not install the dependencies: {done.stderr[-300:]}")
    return folder


def classify(folder, data, address):
    (folder / "image.bin").write_bytes(data)
    command = ["node", "classify.js", "image.bin", address, str(ROOT / "proto/digits/v1/classifier.proto")]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=60)


def test_node_classifies(folder, server):
    """Without our SDK, from the .proto alone: two images in, two digits out."""
    result = classify(folder, image_of(3).tobytes() + image_of(8).tobytes(), server.address)
    assert result.stdout == "3  100.0%\n8  100.0%\n", result.stderr


def test_node_reports_what_is_wrong(folder, server):
    """The server's own words reach the user of another language; exit status 1."""
    result = classify(folder, b"short", server.address)
    assert result.returncode == 1
    assert result.stderr.startswith("INVALID_ARGUMENT: pixels: 5 bytes; allowed is a multiple of 784")
