"""The report's pictures, each a function from numbers to a matplotlib figure; nothing is measured or written here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from digits_export.data import Floats, Images, Labels, Split

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
mpl.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})


def curves(history: dict[str, list[float]]) -> Figure:
    """Draw loss and accuracy by epoch, on training and validation images."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], color=BLUE, label="training, as deformed")
        axes.plot(epochs, history[f"val_{name}"], color=ORANGE, label="validation")
        axes.set(xlabel="epoch", title=name)
    # The first epochs' wild values would flatten the rest.
    left.set_ylim(0, 1.1 * max(history["loss"][0], *history["val_loss"][-3:]))
    right.set_ylim(min(0.9, 0.98 * history["val_accuracy"][-1]), 1.001)
    left.legend()
    return figure


def confusion(counts: list[list[int]]) -> Figure:
    """Draw the confusion matrix: the diagonal's shade is left out, or nothing else could be seen beside it."""
    matrix = np.array(counts)
    shades = matrix * (1 - np.eye(10))
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shades, cmap="OrRd")
    for row, column in np.ndindex(10, 10):
        if matrix[row, column]:
            dark = shades[row, column] > shades.max() * 0.6
            weight = "bold" if row == column else "normal"
            colour = "w" if dark else "k"
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", weight=weight, color=colour)
    axes.set(xticks=range(10), yticks=range(10), xlabel="answer", ylabel="digit", title="images by digit and answer")
    axes.grid(visible=False)
    figure.colorbar(image, label="wrong answers", shrink=0.8)
    return figure


def samples(split: Split, probabilities: Floats) -> Figure:
    """Draw four images of each digit with their label and the answer."""
    rows = np.stack([np.flatnonzero(split.labels == digit)[:4] for digit in range(10)], axis=1).ravel()
    return _gallery(split.images[rows], split.labels[rows], probabilities[rows], columns=10, top=1)


def mistakes(split: Split, probabilities: Floats, rows: Any) -> Figure:
    """Draw wrongly answered images, each with its label and the three likeliest answers."""
    return _gallery(split.images[rows], split.labels[rows], probabilities[rows], columns=10, top=3)


def _gallery(images: Images, labels: Labels, probabilities: Floats, columns: int, top: int) -> Figure:
    lines = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(columns * 1.0, lines * (1.1 + 0.19 * top)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, row in zip(grid, images, labels, probabilities, strict=False):
        likeliest = np.argsort(-row, kind="stable")[:top]
        answers = "\n".join(f"{digit}: {row[digit]:.1%}" for digit in likeliest)
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(f"is {label}\n{answers}", fontsize=7.5, color="k" if likeliest[0] == label else "#c53030")
    return figure


def calibration(figures: dict[str, Any]) -> Figure:
    """Draw accuracy by confidence, before and after temperature scaling, dots as large as their share of images."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    titles = (
        f"before: ECE {figures['ece_before']:.2%}",
        f"temperature {figures['temperature']:.3g}: ECE {figures['ece']:.2%}",
    )
    for axes, bins, name in zip(figure.subplots(1, 2), ("bins_before", "bins"), titles, strict=True):
        confidence = [row["confidence"] for row in figures[bins]]
        accuracy = [row["accuracy"] for row in figures[bins]]
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="as believed")
        axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
        axes.scatter(confidence, accuracy, [8 + 300 * row["share"] for row in figures[bins]], color=BLUE, alpha=0.7)
        axes.set(xlabel="confidence", ylabel="accuracy", title=name, xlim=(0, 1.04), ylim=(0, 1.06))
        axes.legend(loc="upper left")
    return figure


def robustness(curves_by_kind: dict[str, list[dict[str, float]]]) -> Figure:
    """Draw accuracy by the amount of each deformation."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (kind, rows) in zip(figure.subplots(2, 2).ravel(), curves_by_kind.items(), strict=True):
        axes.plot([row["amount"] for row in rows], [row["accuracy"] for row in rows], "o-", color=BLUE, markersize=4)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set(xlabel=kind, ylabel="accuracy", ylim=(0, 1.03))
    return figure


def abstain(thresholds: dict[str, float], digits: list[Floats], strangers: list[Floats] | None) -> Figure:
    """Draw how confidence and outlier score part digits from strangers, with the thresholds.

    Args:
        thresholds: `confidence` and `outlier_score`.
        digits: Probabilities (n, 10) and scores (n,) of test digits.
        strangers: The same of images that are no digits.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = [("digits", BLUE, digits)] + ([("not digits", ORANGE, strangers)] if strangers else [])
    for name, colour, (probabilities, scores) in groups:
        left.hist(probabilities.max(axis=1), np.linspace(0, 1, 41), color=colour, alpha=0.6, label=name)
        right.hist(
            np.log10(np.maximum(scores, 1)), np.linspace(0.5, 4.5, 61).tolist(), color=colour, alpha=0.6, label=name
        )
    left.axvline(thresholds["confidence"], color="k", linestyle="--", label="abstains below")
    right.axvline(np.log10(thresholds["outlier_score"]), color="k", linestyle="--", label="abstains above")
    left.set(xlabel="confidence", ylabel="images", yscale="log")
    right.set(xlabel="outlier score, powers of ten", ylabel="images")
    left.legend()
    right.legend()
    return figure
