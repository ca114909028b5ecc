"""The committed modules are what the .proto files generate."""

import subprocess
from pathlib import Path

from conftest import ROOT


def test_generated_modules_match_their_proto(tmp_path):
    """Regenerating into an empty folder gives the committed modules, no more and no fewer."""
    subprocess.run([ROOT / "proto/generate.sh", tmp_path], check=True, capture_output=True)

    def modules(root: Path):
        return {path.relative_to(root): path.read_text() for path in root.rglob("*_pb2*.py*") if path.suffix != ".pyc"}

    assert modules(tmp_path) == modules(ROOT / "proto"), "run `make proto`"
