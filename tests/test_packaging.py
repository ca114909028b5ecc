"""What the packages are made of: versions that agree, and nothing heavy where it does not belong."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

PACKAGES = ["proto", "server", "client", "export", "web"]
HEAVY = {"tensorflow", "keras", "onnxruntime", "onnx", "tf2onnx", "matplotlib", "prometheus_client", "uvloop", "PIL"}


def loaded_by(statement):
    """Return the top-level modules that a statement loads in a fresh interpreter."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import digits_client", {"PIL"}),
        ("import digits_client.__main__", {"PIL"}),
        ("import digits.v1.classifier_pb2_grpc", set()),
        ("import digits_server.server", {"onnxruntime", "prometheus_client"}),
        ("import digits_server.inference.batcher", set()),
        ("import digits_server.__main__", set()),
    ],
)
def test_imports_stay_light(statement, allowed):
    """A package loads none of its siblings and none of their heavy dependencies."""
    modules = loaded_by(statement)
    assert modules & HEAVY <= allowed
    own = statement.split()[1].partition(".")[0]
    assert modules & {"digits_server", "digits_client", "digits_export"} <= {own}


def test_supervisor_can_not_serve():
    """The process that looks after workers loads nothing that serves: it takes little memory, and little can fail."""
    assert not loaded_by("import digits_server.workers.supervisor") & {"grpc", "google", "numpy", "onnxruntime"}


@pytest.mark.parametrize(("library", "room"), [("onnxruntime", "inference"), ("prometheus_client", "metrics")])
def test_one_room_knows_a_library(library, room):
    """In the server, onnxruntime is imported in `inference` only, and prometheus_client in `metrics`."""
    root = ROOT / "server/digits_server"
    pattern = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    importers = {path.relative_to(root).parts[0] for path in root.rglob("*.py") if pattern.search(path.read_text())}
    assert importers == {room}


def test_versions_agree():
    """All packages and the newest release in the CHANGELOG carry one version, and depend on each other at it."""
    projects = [tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in PACKAGES]
    heading = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {project["version"] for project in projects} == {heading[1]}
    for project in projects:
        for dependency in project["dependencies"]:
            if dependency.startswith("digits-"):
                assert dependency.endswith(f"=={heading[1]}")


def test_every_test_says_what_it_shows():
    """Each test function has a docstring that is a sentence."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                assert (ast.get_docstring(node) or "").endswith("."), f"{path.name}: {node.name}"


def test_pins_have_hashes_and_no_addresses():
    """Every pinned requirement carries a hash, and no file says where packages come from."""
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text().replace("\\\n", "")
        assert "://" not in text
        assert "--index" not in text
        for line in text.splitlines():
            assert "--hash=sha256:" in line, line
