"""The examples in the documentation run."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, start_server

EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/client.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a server on the shipped models."""
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("server"))
    yield server.address
    assert server.stop() == 0


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, address):
    """Each example runs from the repository's root, with the address replaced by that of the test's server."""
    code = example.replace("127.0.0.1:50051", address)
    code = re.sub(r"(DigitClient)\((?=\)|model)", rf'\1("{address}", ', code)
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
