"""Model packages: a trained network calibrated, converted, proven, and written down with all that a server needs.

The order matters: temperature first (it changes the weights), then the graph, and every figure from the graph that
will be served. Thresholds and temperature come from the validation images; the test images are looked at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from digits_export import calibration, convert, models, outlier
from digits_export.data import SUMS, to_vectors

if TYPE_CHECKING:
    from pathlib import Path

    from digits_export.data import Floats, Mnist, Split
    from digits_export.recipe import Recipe
    from digits_export.training import History

REFUSED = 0.004  # share of validation digits that each of the two abstain rules may refuse: under 1 % together
GOLDEN_PER_CLASS = 10
INK_BINS = 20
TOOLS = ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu", "tf2onnx")


@dataclass(frozen=True)
class Abstain:
    """When to say "I don't know": confidence below, or outlier score above, its threshold."""

    confidence: float
    outlier_score: float

    def flags(self, probabilities: Floats, scores: Floats) -> Any:
        """Return (n,) bool: which rows abstain."""
        return (probabilities.max(axis=1) < self.confidence) | (scores > self.outlier_score)


def write(model: Any, recipe: Recipe, history: History, data: Mnist, folder: Path) -> None:
    """Write `model.onnx`, `model.keras`, `model.h5`, `golden.npz` and `history.json` into `folder`.

    The model's last layer is rescaled on the way: its files and the graph all answer calibrated probabilities.

    Raises:
        ParityError: The graph answers differently from Keras; nothing in the folder may be served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    learn, validate = data.held_out(recipe.fit.validation_share)
    temperature = calibration.fit_temperature(models.predict(model, validate.vectors), validate.labels)
    models.scale_logits(model, 1 / temperature)
    models.save(model, folder)
    density = outlier.fit(learn.vectors)
    graph = folder / "model.onnx"
    convert.to_onnx(model, density, graph)
    convert.check_parity(model, density, graph, validate.vectors)

    opened = convert.session(graph)
    probabilities, scores = convert.run(opened, validate.vectors)
    abstain = choose_abstain(probabilities, scores)
    facts = training_facts(recipe, history, model) | {
        "temperature": temperature,
        "train_accuracy": _accuracy(opened, learn),
        "validation_accuracy": _accuracy(opened, validate),
        "test_accuracy": _accuracy(opened, data.test),
    }
    properties = {
        "labels": [str(digit) for digit in range(10)],
        "input_range": [0.0, 1.0],
        "temperature": temperature,
        "abstain": asdict(abstain),
        "training": facts,
        "reference": drift_reference(learn),
    }
    convert.annotate(graph, {f"digits.{key}": json.dumps(value) for key, value in properties.items()})
    np.savez_compressed(folder / "golden.npz", **golden(model, data.test))
    (folder / "history.json").write_text(json.dumps(asdict(history)) + "\n")


def read_properties(opened: Any) -> dict[str, Any]:
    """Return what a package's open session says of itself, without the `digits.` prefix."""
    stored = opened.get_modelmeta().custom_metadata_map
    return {key.removeprefix("digits."): json.loads(value) for key, value in stored.items()}


def choose_abstain(probabilities: Floats, scores: Floats) -> Abstain:
    """Return thresholds that each refuse the least sure 0.4 % of these held-out digits."""
    return Abstain(
        confidence=round(float(np.quantile(probabilities.max(axis=1), REFUSED)), 4),
        outlier_score=round(float(np.quantile(scores, 1 - REFUSED)), 2),
    )


def training_facts(recipe: Recipe, history: History, model: Any) -> dict[str, Any]:
    """Return how the network came to be; what differs between two runs of it (such as the time) stays out."""
    facts = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "epochs": history.epochs,
        "parameters": model.count_params(),
        "data_sha256": SUMS,
    }
    for tool in TOOLS:
        try:
            facts[tool] = version(tool)
        except PackageNotFoundError:  # one of the two TensorFlows, by platform
            continue
    return facts


def drift_reference(learn: Split) -> dict[str, Any]:
    """Return what live traffic is compared with: mean image, spread of mean ink, and how often each digit occurs."""
    vectors = learn.vectors
    counts, edges = np.histogram(vectors.mean(axis=1), INK_BINS)
    return {
        "pixel_mean": [round(float(value), 4) for value in vectors.mean(axis=0)],
        "ink_histogram": {
            "edges": [round(float(edge), 5) for edge in edges],
            "shares": [round(float(share), 5) for share in counts / counts.sum()],
        },
        "class_shares": [round(float(share), 5) for share in np.bincount(learn.labels, minlength=10) / len(learn)],
    }


def golden(model: Any, test: Split) -> dict[str, Any]:
    """Return ten test images of each digit and Keras' answers to them, for servers to check themselves by."""
    rows = np.concatenate([np.flatnonzero(test.labels == digit)[:GOLDEN_PER_CLASS] for digit in range(10)])
    inputs = test.images[rows].reshape(len(rows), -1)
    return {"inputs": inputs, "probabilities": models.predict(model, to_vectors(inputs))}


def _accuracy(opened: Any, split: Split) -> float:
    probabilities = convert.run(opened, split.vectors)[0]
    return round(float((probabilities.argmax(axis=1) == split.labels).mean()), 5)
