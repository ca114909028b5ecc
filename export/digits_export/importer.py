"""Model packages of other makers' models: read, adapted in the graph, measured where labels allow it, written whole."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import InferenceSession

from digits_export import adapt, byte_graph, calibration, convert, foreign, package
from digits_export.adapt import SCALINGS, Scaling
from digits_export.data import Floats, Images, one_line, to_vectors
from digits_export.foreign import ForeignModelError
from digits_export.labelled import Labelled

TOLERANCE = 1e-4  # as the server's, of its reference outputs
REFERENCES = 100
TRIED = 1000  # labelled images by which the scaling of pixels is found


@dataclass(frozen=True)
class Order:
    """What to import, and what the user says of it."""

    source: Path
    name: str
    version: int | None = None
    """The next free one if not given."""
    labels: tuple[str, ...] = ()
    scaling: Scaling | None = None
    """Found out if not given."""
    data: Labelled | None = None


def import_model(order: Order, models: Path, tell: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Write the package of a foreign model into `models/<name>/<version>/` and return what was found and measured.

    Raises:
        ForeignModelError: The model, or what was said of it, can't be used; nothing is written.
    """
    target = _target(order, models)
    model = foreign.read(order.source)
    tell(f"read {order.source}")
    wanted = adapt.find_input(model)
    scaling, why = _find_scaling(order, model, wanted)
    references = _reference_images(order.data)
    raw = _answer(model, wanted, scaling, to_vectors(references))
    kind, decided = adapt.find_output(raw, model.proto.graph)
    labels = _labels(order, model, raw.shape[1])
    found = {
        "input": f"{' x '.join(map(str, wanted.shape))} {wanted.kind}, pixels {scaling.name} ({why})",
        "output": f"{kind} of {len(labels)} classes: {decided}",
    }
    tell(f"input: {found['input']}")
    tell(f"output: {found['output']}")

    facts: dict[str, Any] = {"labels": labels, "input_range": [0.0, 1.0]}
    temperature = 1.0
    if order.data:
        tell(f"measuring on {len(order.data.images):,} images of {order.data.name}")
        probabilities = adapt.to_probabilities(_answer(model, wanted, scaling, order.data.images.vectors), kind)
        facts |= _measure(order.data, probabilities, len(labels))
        temperature = facts["temperature"]
    proto = adapt.assemble(model.proto, wanted, scaling, kind, len(labels), temperature)
    expected = adapt.to_probabilities(raw, kind, temperature)
    facts["source"] = {
        "file": order.source.name,
        "sha256": _sum(order.source),
        "reference_by": model.maker,
        "pixels": {"factor": scaling.factor, "offset": scaling.offset},
        **found,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
        folder = Path(scratch, order.name, target.name)  # as the report and the card call it
        folder.mkdir(parents=True)
        difference = _write(folder, proto, facts, references, expected)
        from digits_export import report  # noqa: PLC0415  (matplotlib takes a second)

        if order.data:
            report.write(folder, order.data.images)
        else:
            report.write_card(folder)
        folder.rename(target)
    return (
        {"package": str(target), "labels": labels, "reference_by": model.maker}
        | found
        | {"measured": _told(facts, difference, model.maker)}
    )


def _told(facts: dict[str, Any], difference: float, maker: str) -> dict[str, str]:
    """Return what was measured, rounded for people."""
    told = {"same as the original": f"to {difference:.0e}, by {maker}"}
    if "training" not in facts:
        return told | {"accuracy, calibration, threshold": "unknown (measured with --data)"}
    return told | {
        "accuracy": f"{facts['training']['test_accuracy']:.2%}",
        "temperature": f"{facts['temperature']:g}: probabilities are calibrated by it, classes stay the original's",
        "abstains below confidence": f"{facts['abstain']['confidence']:.2f}",
    }


def _target(order: Order, models: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", order.name):
        raise ForeignModelError(f"name is {order.name!r}, allowed: letters, digits, '.', '_' and '-'")
    there = {int(path.name) for path in (models / order.name).glob("*") if path.name.isdecimal()}
    version = order.version or max(there, default=0) + 1
    if version in there:
        raise ForeignModelError(f"{models / order.name / str(version)} is there; name another --version, or none")
    return models / order.name / str(version)


def _answer(model: foreign.ForeignModel, wanted: adapt.Wanted, scaling: Scaling, vectors: Floats) -> Floats:
    """Return the original's (n, classes) answers to (n, 784) vectors in [0, 1]."""
    try:
        answers = np.asarray(model.answer(wanted.images(vectors, scaling)))
    except Exception as error:  # each framework has its own
        raise ForeignModelError(f"it can't be run on images of shape {wanted.shape}: {one_line(error)}") from error
    if answers.ndim != 2 or answers.shape[1] < 2 or len(answers) != len(vectors):
        raise ForeignModelError(
            f"its answers to {len(vectors)} images have shape {answers.shape}, allowed: (n, classes) with 2 or more"
        )
    return answers


def _find_scaling(order: Order, model: foreign.ForeignModel, wanted: adapt.Wanted) -> tuple[Scaling, str]:
    """Return how the model wants its pixels, and how that was decided."""
    if order.scaling:
        return order.scaling, "as told"
    if wanted.scaling:
        return wanted.scaling, "by its type" if wanted.kind.kind in "iu" else "the graph scales them itself"
    if order.data is None:
        raise ForeignModelError(
            "which range its pixels have can't be told from the graph; say --scale 1/255 (0 ... 1) or --scale 1 "
            "(0 ... 255), with --mean and --std if it wants them normalised, or give labelled images with --data"
        )
    some = order.data.images.take(slice(0, TRIED))
    losses = {}
    for scaling in SCALINGS:
        raw = _answer(model, wanted, scaling, some.vectors)
        kind, _ = adapt.find_output(raw, model.proto.graph)
        order.data.check(raw.shape[1])
        losses[scaling] = calibration.best_losses(adapt.to_probabilities(raw, kind), some.labels)
    best, second, *_ = sorted(SCALINGS, key=lambda scaling: float(losses[scaling].mean()))
    chosen = next(scaling for scaling in SCALINGS if calibration.is_as_good(losses[scaling], losses[best]))
    compared = chosen, second if chosen == best else best
    told = ", ".join(f"{losses[scaling].mean():.3g} as {scaling.name}" for scaling in compared)
    return chosen, f"of {len(SCALINGS)} ways tried; log loss {told}"


def _labels(order: Order, model: foreign.ForeignModel, classes: int) -> list[str]:
    numbers = [str(number) for number in range(classes)]
    labels = list(order.labels) or (model.labels if len(model.labels) == classes else numbers)
    if len(labels) != classes:
        raise ForeignModelError(f"there are {len(labels)} labels, allowed: {classes}, one for each class")
    if len(set(labels)) != classes:
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ForeignModelError(f"label {twice!r} is there twice, allowed: each once")
    return labels


def _reference_images(data: Labelled | None) -> Images:
    """Return (n, 784) uint8 images to prove a server right by: of each class some, else blobs of ink by chance."""
    if data:
        per_class = max(1, REFERENCES // len(np.unique(data.images.labels)))
        return data.images.images[data.images.first_of_each(per_class)].reshape(-1, 784)
    coarse = np.random.default_rng(0).random((REFERENCES, 7, 7)) ** 4
    return (255 * coarse.repeat(4, axis=1).repeat(4, axis=2)).astype(np.uint8).reshape(-1, 784)


def _measure(data: Labelled, probabilities: Floats, classes: int) -> dict[str, Any]:
    """Return accuracy, temperature, threshold and drift reference as metadata."""
    data.check(classes)
    choose = slice(0, None, 2)
    temperature = calibration.helpful_temperature(probabilities[choose], data.images.labels[choose])
    confident = calibration.soften(probabilities, temperature).max(axis=1)
    accuracy = float((probabilities.argmax(axis=1) == data.images.labels).mean())
    return {
        "temperature": temperature,
        "abstain": {"confidence": round(float(np.quantile(confident[choose], package.ABSTAINED)), 4)},
        "training": {"test_accuracy": round(accuracy, 5), "dataset": data.name, "images": len(data.images)},
        "reference": package.drift_reference(data.images, classes),
    }


def _write(folder: Path, proto: onnx.ModelProto, facts: dict[str, Any], images: Images, expected: Floats) -> float:
    """Write both graphs and the reference outputs; return how far the graph is from the original."""
    graph = folder / "model.onnx"
    onnx.save(proto, graph)
    convert.annotate(graph, facts)
    opened = convert.session(graph)
    difference = _compare(opened, to_vectors(images), expected)
    np.savez_compressed(folder / "reference.npz", inputs=images, probabilities=expected)
    derived = folder / "bytes.onnx"
    try:
        byte_graph.write(graph, derived)
        convert.check_bytes(graph, derived, images)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, convert.ParityError):
        derived.unlink(missing_ok=True)  # a server does without: trees compare pixels with thresholds, to the last bit
    return difference


def _compare(opened: InferenceSession, vectors: Floats, expected: Floats) -> float:
    """Return how far the graph's answers are from the original's, to images together and to some of them alone."""
    together = float(np.abs(convert.run(opened, vectors)[0] - expected).max())
    answers = [convert.run(opened, vectors[row : row + 1])[0] for row in range(7)]
    alone = float(np.abs(np.concatenate(answers) - expected[:7]).max())
    if not together <= TOLERANCE:
        raise ForeignModelError(
            f"the graph's probabilities differ from the original's by {together:.1e}, allowed: {TOLERANCE:.0e}"
        )
    if not alone <= TOLERANCE:
        raise ForeignModelError(
            f"an image alone gets probabilities that differ by {alone:.1e} from those among others, allowed: "
            f"{TOLERANCE:.0e}; dynamic quantisation does so"
        )
    return max(together, alone)


def _sum(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files one after another in the order of their paths."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            total.update(file.read_bytes())
    return total.hexdigest()
