"""A package's report: figures as JSON, pictures as PNG, both in one self-contained page, and the model card.

Made from the `.onnx` that will be served and from the training's history; run it again at any time.
"""

from __future__ import annotations

import base64
import html
import io
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digits_export import convert, evaluate, figures
from digits_export.data import to_vectors

if TYPE_CHECKING:
    from digits_export.data import Images, Split
    from digits_export.recipe import Recipe

MISTAKES = 60  # shown in the gallery; more would be a wall
DPI = 80

TITLES = {
    "curves": "Training and validation",
    "confusion": "Confusion matrix",
    "samples": "Sample digits with labels and answers",
    "mistakes": "Misclassified digits, the surest first, with the three likeliest answers",
    "calibration": "Calibration",
    "abstain": "Saying “I don't know”",
    "robustness": "Accuracy under deformation",
}


def write(
    folder: Path, recipe: Recipe, test: Split, strangers: Images | None = None, *, threads: int = 1
) -> dict[str, Any]:
    """Write `report/` and `README.md` into a package's folder and return the figures.

    Args:
        folder: The package.
        recipe: What it was made by.
        test: The test images.
        strangers: (n, 28, 28) uint8 images that are not digits, if there are any to measure with.
        threads: Threads that it was trained with, for the card.
    """
    history = json.loads((folder / "history.json").read_text())
    measured = evaluate.evaluate(folder, test, strangers)
    measured |= {"recipe_summary": recipe.summary, "training_seconds": history["seconds"], "history": history["curves"]}
    target = folder / "report"
    target.mkdir(exist_ok=True)
    (target / "report.json").write_text(json.dumps(measured, indent=1) + "\n")
    pictures = {name: to_png(figure) for name, figure in _draw(folder, measured, test, strangers).items()}
    for name, png in pictures.items():
        (target / f"{name}.png").write_bytes(png)
    (target / "index.html").write_text(_page(folder, measured, pictures), "utf-8")
    (folder / "README.md").write_text(_card(folder, measured, threads), "utf-8")
    return measured


def _draw(folder: Path, measured: dict[str, Any], test: Split, strangers: Images | None) -> dict[str, Any]:
    opened = convert.session(folder / "model.onnx")
    digits = convert.run(opened, test.vectors)
    others = None if strangers is None else convert.run(opened, to_vectors(strangers))
    return {
        "curves": figures.curves(measured["history"]),
        "confusion": figures.confusion(measured["confusion"]),
        "samples": figures.samples(test, digits[0]),
        "mistakes": figures.mistakes(test, digits[0], evaluate.worst(digits[0], test.labels, MISTAKES)),
        "calibration": figures.calibration(measured["calibration"]),
        "abstain": figures.abstain(measured["abstain"], digits, others),
        "robustness": figures.robustness(measured["robustness"]),
    }


def to_png(figure: Any) -> bytes:
    """Return a figure as the bytes of a PNG file, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def results(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures that matter, named and formatted, for the page and the card."""
    training, abstain, calibration = measured["training"], measured["abstain"], measured["calibration"]
    rows = [
        (
            "test accuracy (10,000 images)" if measured["images"] == 10_000 else "test accuracy",
            f"{measured['accuracy']:.2%}",
        ),
        ("validation accuracy", f"{training['validation_accuracy']:.2%}"),
        ("training accuracy (images undeformed)", f"{training['train_accuracy']:.2%}"),
        ("parameters", f"{training['parameters']:,}"),
        ("training", f"{training['epochs']} epochs, {measured['training_seconds'] / 60:.1f} minutes"),
        (
            "expected calibration error",
            f"{calibration['ece']:.2%} (before temperature: {calibration['ece_before']:.2%})",
        ),
        ("temperature, folded into the weights", f"{calibration['temperature']:g}"),
        ("abstains when", f"confidence < {abstain['confidence']:g} or outlier score > {abstain['outlier_score']:g}"),
        ("coverage, and accuracy there", f"{1 - abstain['digits_refused']:.2%}, {abstain['accuracy_on_the_rest']:.2%}"),
    ]
    if "strangers" in abstain:
        rows.append(("Fashion-MNIST images refused", f"{abstain['strangers_refused']:.2%} of {abstain['strangers']:,}"))
    return rows


def _title(folder: Path) -> str:
    return f"{folder.resolve().parent.name} {folder.resolve().name}"


def _page(folder: Path, measured: dict[str, Any], pictures: dict[str, bytes]) -> str:
    facts = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(value)}" for name, value in results(measured))
    classes = "".join(
        f"<tr><th>{row['digit']}"
        + "".join(f"<td>{row[name]:.4f}" for name in ("precision", "recall", "f1"))
        + f"<td>{row['support']}"
        for row in measured["classes"]
    )
    images = "".join(
        f'<h2>{TITLES[name]}</h2><img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in pictures.items()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{_title(folder)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }} th, td {{ padding: .2rem .8rem; text-align: left }}
img {{ max-width: 100% }}
</style>
<h1>{_title(folder)}</h1>
<p>{html.escape(measured["recipe_summary"])}. All figures are of <code>model.onnx</code>, run by onnxruntime.</p>
<table>{facts}</table>
<h2>Classification report</h2>
<table><tr><th>digit<th>precision<th>recall<th>F1<th>images{classes}</table>
{images}
</html>
"""


def _card(folder: Path, measured: dict[str, Any], threads: int) -> str:
    title, training = _title(folder), measured["training"]
    facts = "\n".join(f"| {name} | {value} |" for name, value in results(measured))
    sizes = "\n".join(f"| `{path.name}` | {path.stat().st_size:,} |" for path in sorted(folder.glob("model.*")))
    return f"""# {title}

Recognises one handwritten digit in 28 by 28 pixels: {measured["recipe_summary"]}.

Made, measured and proven by one command, on {_machine()} with {threads} thread{"s" if threads > 1 else ""}:

    digits-export train --recipe {training["recipe"]} --threads {threads} --out models/{title.replace(" ", "/")}

| what | result |
|---|---|
{facts}

Every figure is of `model.onnx` run by onnxruntime; thresholds and temperature were chosen on validation images.
More, with pictures: [report](report/index.html).

| file | bytes |
|---|---|
{sizes}

Input `vectors`: float32 `[batch, 784]`, row by row, 0 background … 1 ink, preprocessed as MNIST is (ink bright, fitted
into 20 by 20, its centre of mass in the middle). Outputs `probabilities` `[batch, 10]`, calibrated, and `outlier_score`
`[batch]`. It knows single digits written by Americans in the 1990s; it has not been measured on others.

Trained on MNIST (Yann LeCun, Corinna Cortes, Christopher J. C. Burges, 1998; CC BY-SA 3.0).
"""


def _machine() -> str:
    """Return the processor's name, as Linux tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
