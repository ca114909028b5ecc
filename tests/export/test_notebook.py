"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path

from digits_export import data

NOTEBOOK = Path(__file__).parents[2] / "export" / "notebooks" / "mnist_ann.ipynb"


def test_every_cell_of_the_notebook_runs(monkeypatch, sample):
    """The walk-through holds for a small real sample: trained, exported, and answered alike."""
    monkeypatch.setattr(data, "load", lambda: sample)
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["difference"] <= 1e-5
