"""A package's report: figures as JSON, pictures as PNG, both in one self-contained page, and the model card.

Made from the `.onnx` that is served; run it again at any time. What can't be measured again where it runs (the
training, out-of-distribution images that aren't at hand) stays as it was found.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from digits_export import byte_graph, convert, evaluate, figures, package
from digits_export.damage import KINDS
from digits_export.data import Images, Split, to_vectors

MISCLASSIFIED = 60  # shown in the gallery; more would be a wall
DPI = 80
ELSEWHERE = ("out_of_distribution", "out_of_distribution_abstained")  # figures that need images of another source
TITLES = {
    "curves": "Training and validation",
    "confusion": "Confusion matrix",
    "samples": "Sample images with labels and predictions",
    "misclassified": "Misclassified images, most confident first, with the three likeliest classes",
    "calibration": "Calibration",
    "abstain": "Abstention",
    "robustness": "Accuracy under distortion",
}


def write(folder: Path, test: Split, others: Images | None = None) -> dict[str, Any]:
    """Write `report/` and `README.md` into a package's folder and return the figures.

    Args:
        folder: The package.
        test: The test images.
        others: (n, 28, 28) uint8 out-of-distribution images, if there are any to measure with.

    Raises:
        PackageError: The folder is no package.
    """
    measured = evaluate.evaluate(folder, test, others)
    target = folder / "report"
    stored = target / "report.json"
    measured["graph_sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    earlier = json.loads(stored.read_text()) if stored.is_file() else {}
    kept = {}
    if earlier.get("graph_sha256") == measured["graph_sha256"] and others is None:
        kept = {name: earlier["abstain"][name] for name in ELSEWHERE if name in earlier["abstain"]}
    measured["abstain"] |= kept
    history = folder / "history.json"
    if history.is_file():
        told = json.loads(history.read_text())
        measured |= {"training_seconds": told["seconds"], "history": told["curves"]}
    target.mkdir(exist_ok=True)
    stored.write_text(json.dumps(measured, indent=1) + "\n")
    drawn = {name: to_png(figure) for name, figure in _draw(folder, measured, test, others).items()}
    if kept:
        drawn["abstain"] = (target / "abstain.png").read_bytes()  # shows more than could be drawn now
    for name, png in drawn.items():
        (target / f"{name}.png").write_bytes(png)
    page = _render("page.html.j2", folder, measured, pictures=drawn)
    (target / "index.html").write_text(page, "utf-8")
    write_card(folder, measured)
    return measured


def write_card(folder: Path, measured: dict[str, Any] | None = None) -> None:
    """Write `README.md`, the model card, which without figures says that they are unknown."""
    (folder / "README.md").write_text(_render("card.md.j2", folder, measured or {}), "utf-8")


def _draw(folder: Path, measured: dict[str, Any], test: Split, others: Images | None) -> dict[str, Any]:
    opened, properties = package.open_graph(folder)
    labels, digits = properties["labels"], convert.run(opened, test.vectors)
    worst = evaluate.worst(digits[0], test.labels, MISCLASSIFIED)
    pictures = {}
    if "history" in measured:
        pictures["curves"] = figures.curves(measured["history"], augmented=measured["training"].get("augmented", False))
    pictures |= {
        "confusion": figures.confusion(measured["confusion"], labels),
        "samples": figures.samples(test, digits[0], labels),
        "misclassified": figures.misclassified(test, digits[0], labels, worst),
        "calibration": figures.calibration(measured["calibration"]),
    }
    if "confidence" in measured["abstain"]:
        foreign = None if others is None else convert.run(opened, to_vectors(others))
        pictures["abstain"] = figures.abstain(measured["abstain"], digits, foreign)
    return pictures | {"robustness": figures.robustness(measured["robustness"])}


def to_png(figure: Any) -> bytes:
    """Return a figure as the bytes of a PNG file, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def results(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures that matter, named and rounded for people."""
    training, abstain, calibration = measured["training"], measured["abstain"], measured["calibration"]
    rows = [(f"test accuracy ({measured['images']:,} images)", f"{measured['accuracy']:.2%}")]
    if "validation_accuracy" in training:
        rows += [
            ("validation accuracy", f"{training['validation_accuracy']:.2%}"),
            ("training accuracy (unaugmented images)", f"{training['train_accuracy']:.2%}"),
            ("parameters", f"{training['parameters']:,}"),
        ]
    if "training_seconds" in measured:
        after = f", starting from the weights of {training['start']}" if training.get("start") else ""
        rows.append(
            ("training", f"{training['epochs']} epochs, {measured['training_seconds'] / 60:.1f} minutes{after}")
        )
    if calibration["temperature"] == 1:
        rows.append(("expected calibration error", f"{calibration['ece']:.2%} (no temperature reduced it)"))
    else:
        rows += [
            (
                "expected calibration error",
                f"{calibration['ece']:.2%} (before temperature scaling: {calibration['ece_before']:.2%})",
            ),
            ("temperature (part of the graph)", f"{calibration['temperature']:g}"),
        ]
    if "confidence" in abstain:
        rule = f"confidence < {abstain['confidence']:g}"
        rule += f" or outlier score > {abstain['outlier_score']:g}" if "outlier_score" in abstain else ""
        rows += [
            ("abstains when", rule),
            ("abstained", f"{abstain['abstained']:.2%}"),
            ("selective accuracy", f"{abstain['selective_accuracy']:.2%}"),
        ]
    if "out_of_distribution" in abstain:
        rate = f"{abstain['out_of_distribution_abstained']:.2%} of {abstain['out_of_distribution']:,}"
        rows.append(("Fashion-MNIST images abstained on", rate))
    rows += [
        (f"{row['set']} ({row['images']:,} images)", f"{row['right'] / row['images']:.2%}")
        for row in measured["elsewhere"]
        if row["set"] not in KINDS
    ]
    damaged = [row for row in measured["elsewhere"] if row["set"] in KINDS]
    right, shown = (sum(row[count] for row in damaged) for count in ("right", "images"))
    return [*rows, (f"test images damaged in {len(damaged)} ways ({shown:,} images)", f"{right / shown:.2%}")]


def _render(template: str, folder: Path, measured: dict[str, Any], pictures: dict[str, bytes] | None = None) -> str:
    _, properties = package.open_graph(folder)
    history, derived = folder / "history.json", folder / "bytes.onnx"
    environment = Environment(
        loader=PackageLoader("digits_export"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        title=" ".join(folder.resolve().parts[-2:]),
        summary=properties.get("training", {}).get("summary", "an imported model"),
        source=properties.get("source"),
        labels=properties["labels"],
        training=properties.get("training", {}),
        trained_on=json.loads(history.read_text()).get("trained_on") if history.is_file() else None,
        results=results(measured) if measured else [],
        classes=measured.get("classes", {}),
        elsewhere=measured.get("elsewhere", []),
        abstain=properties.get("abstain", {}),
        bytes=byte_graph.first_layer_of(derived) if derived.is_file() else None,
        files=[
            (path.name, path.stat().st_size)
            for path in sorted(folder.glob("*.onnx")) + sorted(folder.glob("model.[hk]*"))
        ],
        pictures={name: base64.b64encode(png).decode() for name, png in (pictures or {}).items()},
        titles=TITLES,
    )
