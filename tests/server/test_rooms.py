"""The rooms of the server depend on each other in one direction."""

import ast

import pytest
from conftest import ROOT

SERVER = ROOT / "server/digits_server"
LEAVES = {"errors", "config", "addresses", "logs"}
ALLOWED = {
    "__main__": {"workers", "rpc.fronts"},
    "workers": {"server", "metrics", "rpc.fronts"},
    "server": {"api", "rpc", "models", "metrics.definitions"},
    "api": {"models", "inference", "rpc.context", "rpc.status"},
    "models": {"inference", "metrics.definitions"},
    "rpc": {"metrics.definitions", "inference.request", "models.package"},
    "inference": set(),
    "metrics": set(),
    **{leaf: set() for leaf in LEAVES},
}
FOR_TYPES = {"metrics": {"inference", "models"}}
"""What may be imported under TYPE_CHECKING alone: the metrics are told of batches and packages."""


def imports(path):
    """Yield the module after `digits_server.` of each import, and whether it is for types only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "digits_server":
            stem = node.module.removeprefix("digits_server").lstrip(".")
            names = [stem] if "." in stem or (stem in ALLOWED and not (SERVER / stem).is_dir()) else []
            for name in names or [f"{stem}.{alias.name}".lstrip(".") for alias in node.names]:
                yield name, id(node) in for_types


def room(name):
    return name.split(".")[0]


@pytest.mark.parametrize("path", sorted(SERVER.rglob("*.py")), ids=lambda path: str(path.relative_to(SERVER)))
def test_imports_go_one_way(path):
    """A module imports its own room, the rooms below it, and the few modules that belong to nobody."""
    own = path.relative_to(SERVER).with_suffix("").parts[0]
    allowed = ALLOWED.get(own, set())
    for name, is_for_types in imports(path):
        fits = {own, *LEAVES, *allowed, *(FOR_TYPES.get(own, set()) if is_for_types else set())}
        assert room(name) in fits or name in fits, f"{own} imports {name}"
