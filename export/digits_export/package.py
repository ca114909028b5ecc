"""Model packages: a trained network calibrated, converted, proven, and written down with all that a server needs.

The order matters: temperature first (it changes the weights), then the graph, and every figure from the graph that
will be served. Thresholds and temperature come from the validation images; the test images are looked at once.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from digits_export import byte_graph, calibration, convert, models, outlier
from digits_export.data import CLASSES, SUMS, Fault, Floats, Mnist, Split, one_line, to_vectors
from digits_export.quantization import put_on_grid
from digits_export.recipe import Recipe
from digits_export.training import History

ABSTAINED = 0.004  # share of validation digits on which each of the two rules abstains: under 1 % together
REFERENCE_PER_CLASS = 10  # test images with Keras' answers, for servers to check themselves by
QUANTIZED_BY = 20_000  # training images whose correlations tell how weights are rounded; more change nothing
INK_BINS = 20
DIGITS = [str(digit) for digit in range(CLASSES)]
TOOLS = ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu", "tf2onnx")


class PackageError(Fault):
    """A folder that is no package, or a package that isn't what the command needs: the message says why."""


@dataclass(frozen=True)
class Abstain:
    """When to say "I don't know": confidence below, or outlier score above, its threshold."""

    confidence: float = 0.0
    outlier_score: float = float("inf")

    def flags(self, probabilities: Floats, scores: Floats | None = None) -> npt.NDArray[np.bool_]:
        """Return (n,) bool: on which rows it abstains; without scores, by confidence alone."""
        unsure = probabilities.max(axis=1) < self.confidence
        return unsure if scores is None else unsure | (scores > self.outlier_score)


def write(model: Any, recipe: Recipe, history: History, data: Mnist, folder: Path, *, threads: int = 1) -> None:
    """Write `model.onnx`, `bytes.onnx`, `model.keras`, `model.h5`, `reference.npz` and `history.json` into `folder`.

    The model's last layer is rescaled on the way: its files and the graph all answer calibrated probabilities.

    Raises:
        ParityError: The graph answers differently from Keras; nothing in the folder may be served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    learn, validate = data.held_out(recipe.fit.validation_share)
    if recipe.first_layer_bits:
        kernel = model.layers[0].kernel
        kernel.assign(put_on_grid(kernel.numpy(), learn.vectors[:QUANTIZED_BY]))
    temperature = calibration.helpful_temperature(models.predict(model, validate.vectors), validate.labels)
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
        "labels": DIGITS,
        "input_range": [0.0, 1.0],
        "temperature": temperature,
        "abstain": asdict(abstain),
        "training": facts,
        "reference": drift_reference(learn),
    }
    convert.annotate(graph, properties)
    byte_graph.write(graph, folder / "bytes.onnx")
    convert.check_bytes(graph, folder / "bytes.onnx", validate.images)
    inputs = data.test.images[data.test.first_of_each(REFERENCE_PER_CLASS)].reshape(-1, 784)
    np.savez_compressed(
        folder / "reference.npz", inputs=inputs, probabilities=models.predict(model, to_vectors(inputs))
    )
    where = {"trained_on": {"machine": _machine(), "threads": threads}}
    (folder / "history.json").write_text(json.dumps(asdict(history) | where) + "\n")


def open_graph(folder: Path) -> tuple[InferenceSession, dict[str, Any]]:
    """Return a package's graph, open for inference, and what it says of itself, without the `digits.` prefix.

    Raises:
        PackageError: The folder holds no graph that can be opened, or one without labels.
    """
    graph = folder / "model.onnx"
    if not graph.is_file():
        raise PackageError(f"{folder} is no package: it has no model.onnx")
    try:
        opened = convert.session(graph)
        properties = read_properties(opened)
    except Exception as error:  # onnxruntime's errors have no base class
        raise PackageError(f"{graph} can't be opened: {one_line(error)}") from error
    if "labels" not in properties:
        raise PackageError(f"{graph} has no digits.labels: digits-export import makes a package of it")
    return opened, properties


def check_reads_mnist(folder: Path) -> None:
    """Check that MNIST's test images can tell something of a package, and were what it has been measured on so far.

    Raises:
        PackageError: They can't, or the folder holds no package.
    """
    _, properties = open_graph(folder)
    labels, dataset = properties["labels"], properties.get("training", {}).get("dataset", "nothing yet")
    if labels != DIGITS or dataset not in {"MNIST", "nothing yet"}:
        raise PackageError(
            f"{folder} has {len(labels)} classes and was measured on {dataset}, allowed: digits and MNIST. "
            "digits-export import FILE --data measures others, as a new version"
        )


def read_properties(opened: InferenceSession) -> dict[str, Any]:
    """Return what a package's open session says of itself, without the `digits.` prefix."""
    stored = opened.get_modelmeta().custom_metadata_map.items()
    return {key.removeprefix("digits."): json.loads(value) for key, value in stored if key.startswith("digits.")}


def choose_abstain(probabilities: Floats, scores: Floats) -> Abstain:
    """Return thresholds that each abstain on the least sure 0.4 % of these held-out digits."""
    return Abstain(
        confidence=round(float(np.quantile(probabilities.max(axis=1), ABSTAINED)), 4),
        outlier_score=round(float(np.quantile(scores, 1 - ABSTAINED)), 2),
    )


def training_facts(recipe: Recipe, history: History, model: Any) -> dict[str, Any]:
    """Return how the network came to be; what differs between two runs of it (such as the time) stays out."""
    facts = {
        "recipe": recipe.name,
        "summary": recipe.summary,
        "start": recipe.start,
        "drawn": recipe.foreign.drawn,
        "scribbled": recipe.foreign.scribbled,
        "touching": recipe.foreign.touching,
        "damaged": recipe.foreign.damaged,
        "augmented": recipe.deformation.is_active,
        "dataset": "MNIST",
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


def drift_reference(learn: Split, classes: int = CLASSES) -> dict[str, Any]:
    """Return what live traffic is compared with: mean image, spread of mean ink, and how often each class occurs."""
    vectors = learn.vectors
    counts, edges = np.histogram(vectors.mean(axis=1), INK_BINS)
    return {
        "pixel_mean": [round(float(value), 4) for value in vectors.mean(axis=0)],
        "ink_histogram": {
            "edges": [round(float(edge), 5) for edge in edges],
            "shares": [round(float(share), 5) for share in counts / counts.sum()],
        },
        "class_shares": [round(float(share), 5) for share in np.bincount(learn.labels, minlength=classes) / len(learn)],
    }


def _machine() -> str:
    """Return the processor's name, as Linux tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _accuracy(opened: InferenceSession, split: Split) -> float:
    probabilities = convert.run(opened, split.vectors)[0]
    return round(float((probabilities.argmax(axis=1) == split.labels).mean()), 5)
