"""The README: its commands print what it says, its code runs, its errors are the server's, its links lead somewhere."""

import math
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from conftest import ROOT, start_server

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

README = (ROOT / "README.md").read_text()
ASKED = {
    "783 bytes": pb.ClassifyRequest(pixels=bytes(783)),
    "nothing": pb.ClassifyRequest(),
    "NaN, or 1.5": pb.ClassifyRequest(vectors=[math.nan] * 784),
    "unknown model": pb.ClassifyRequest(pixels=bytes(784), model="nope"),
    "5 MB": pb.ClassifyRequest(pixels=bytes(6400 * 784)),
    "5,000 images": pb.ClassifyRequest(pixels=bytes(5000 * 784)),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a server on the shipped models."""
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("readme"))
    yield server.address
    assert server.stop() == 0


def test_shown_command_prints_what_is_shown(address):
    """`digits classify` with the samples says what the README has below it."""
    arguments, shown = re.search(r"\$ \.venv/bin/digits (classify .*?)  .*\n([^`$]*)```", README).groups()
    command = f"{Path(sys.executable).with_name('digits')} {arguments} --server {address}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == shown, done.stderr


def test_shown_code_runs(address):
    """The Python code can be copied and run as it stands beside a server."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace("127.0.0.1:50051", address)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("4 0.98"), done.stderr


@pytest.mark.parametrize("asked", ASKED)
def test_shown_errors_are_the_servers(address, asked):
    """A request that can't be answered gets the status and the words that the README has for it."""
    status, message = re.search(rf"^\| {re.escape(asked)} \| `(\w+)` \| `(.*)` \|$", README, re.MULTILINE).groups()
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        pb_grpc.DigitClassifierStub(channel).Classify(ASKED[asked], timeout=20)
    assert (refused.value.code().name, refused.value.details()) == (status, message)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_lead_somewhere(page):
    """Each link to a file of this repository finds one, and each to a section its heading."""
    pages = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).rglob("*.md"))
    for file in pages:
        for target, section in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", file.read_text()):
            found = (file.parent / target) if target else file
            assert found.exists(), f"{file}: {target}"
            if section:
                headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
                names = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert section in names, f"{file}: {target}#{section}"
