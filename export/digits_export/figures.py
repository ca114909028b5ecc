"""The report's pictures, each a function from numbers to a matplotlib figure; nothing is measured or written here."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

from digits_export.data import Floats, Split

MOST_LABELLED = 40  # classes whose counts fit into the confusion matrix
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
mpl.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})


def curves(history: dict[str, list[float]], *, augmented: bool) -> Figure:
    """Draw loss and accuracy by epoch, on training (as augmented, if they were) and validation images."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], color=BLUE, label="training, augmented" if augmented else "training")
        axes.plot(epochs, history[f"val_{name}"], color=ORANGE, label="validation")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    # The first epochs' wild values would flatten the rest.
    left.set_ylim(0, 1.1 * max(history["loss"][0], *history["val_loss"][-3:]))
    right.set_ylim(min(0.9, 0.98 * history["val_accuracy"][-1]), 1.001)
    left.legend()
    return figure


def confusion(counts: list[list[int]], labels: list[str]) -> Figure:
    """Draw the confusion matrix, shaded by the logarithm of the counts: a handful of errors shows beside hundreds."""
    side = max(6.0, min(16.0, 0.45 * len(labels)))
    figure = Figure(figsize=(side, 0.9 * side), layout="constrained")
    axes = figure.subplots()
    matrix = np.array(counts)
    shown = ConfusionMatrixDisplay(matrix, display_labels=labels)
    norm = LogNorm(1, max(2, int(matrix.max())))
    shown.plot(ax=axes, cmap="Blues", include_values=False, im_kw={"norm": norm}, xticks_rotation="vertical")
    axes.grid(visible=False)
    for row, column in np.argwhere(matrix > 0) if len(labels) <= MOST_LABELLED else ():
        colour = "w" if norm(matrix[row, column]) > 0.6 else "k"
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted label", ylabel="true label", title="true vs predicted label")
    return figure


def samples(split: Split, probabilities: Floats, labels: list[str]) -> Figure:
    """Draw four images of each of the first ten classes with their label and the answer."""
    rows = split.first_of_each(4)[:40]
    return _gallery(split.take(rows), probabilities[rows], labels, top=1)


def misclassified(split: Split, probabilities: Floats, labels: list[str], rows: npt.NDArray[np.int64]) -> Figure:
    """Draw wrongly answered images, each with its label and the three likeliest answers."""
    return _gallery(split.take(rows), probabilities[rows], labels, top=3)


def _gallery(split: Split, probabilities: Floats, labels: list[str], top: int, columns: int = 10) -> Figure:
    lines = max(1, -(-len(split) // columns))
    figure = Figure(figsize=(columns * 1.0, lines * (1.1 + 0.19 * top)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, row in zip(grid, split.images, split.labels, probabilities, strict=False):
        likeliest = np.argsort(-row, kind="stable")[:top]
        answers = "\n".join(f"{labels[index]}: {row[index]:.1%}" for index in likeliest)
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        title = f"is {labels[label]}\n{answers}"
        axes.set_title(title, fontsize=7.5, color="k" if likeliest[0] == label else "#c53030", parse_math=False)
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
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect calibration")
        axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
        axes.scatter(confidence, accuracy, [8 + 300 * row["share"] for row in figures[bins]], color=BLUE, alpha=0.7)
        axes.set(xlabel="confidence", ylabel="accuracy", title=name, xlim=(0, 1.04), ylim=(0, 1.06))
        axes.legend(loc="upper left")
    return figure


def robustness(curves_by_kind: dict[str, list[dict[str, float]]]) -> Figure:
    """Draw accuracy by the amount of each distortion."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (kind, rows) in zip(figure.subplots(2, 2).ravel(), curves_by_kind.items(), strict=True):
        axes.plot([row["amount"] for row in rows], [row["accuracy"] for row in rows], "o-", color=BLUE, markersize=4)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set(xlabel=kind, ylabel="accuracy", ylim=(0, 1.03))
    return figure


def abstain(thresholds: dict[str, float], digits: list[Floats], others: list[Floats] | None) -> Figure:
    """Draw how confidence and outlier score tell test images from others, with the thresholds.

    Args:
        thresholds: `confidence` and, where the model has such a score, `outlier_score`.
        digits: Probabilities (n, classes) and, where it has them, scores (n,) of test images.
        others: The same of out-of-distribution images.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour, outputs in (("test", BLUE, digits), ("out of distribution", ORANGE, others or [])):
        for axes, values, bins in zip((left, right), _judged(outputs), (41, 61), strict=False):
            edges = np.linspace(0, 1, bins) if axes is left else np.linspace(0.5, 4.5, bins)
            axes.hist(values, edges.tolist(), color=colour, alpha=0.6, label=name)
    left.axvline(thresholds["confidence"], color="k", linestyle="--", label="abstains below")
    left.set(xlabel="confidence", ylabel="images", yscale="log")
    left.legend()
    if "outlier_score" in thresholds:
        right.axvline(np.log10(thresholds["outlier_score"]), color="k", linestyle="--", label="abstains above")
        right.set(xlabel="log10 of the outlier score", ylabel="images")
        right.legend()
    else:
        right.axis("off")
    return figure


def _judged(outputs: list[Floats]) -> list[Floats]:
    """Return confidences and, if there are scores, their logarithms."""
    return [outputs[0].max(axis=1), *(np.log10(np.maximum(scores, 1)) for scores in outputs[1:])] if outputs else []
