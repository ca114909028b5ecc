"""Results as a terminal shows them: lines, JSON, and the digit drawn. Whatever is shown stays on its line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from digits_client import _arrays, _requests
from digits_client._errors import DigitsError
from digits_client._reading import Number
from digits_client._results import Model, Prediction

SHADES, BAR = " ░▒▓█", "█"
PLAIN_SHADES, PLAIN_BAR = " .+*#", "#"  # for terminals whose encoding lacks the others
BAR_LENGTH = 30  # characters of a bar for 100 %
BARS = 10  # fit beside the drawing
WIDTH = 100  # of a line in the list of models


def printable(text: str) -> str:
    """Return text with what would break a line, or control the terminal, escaped."""
    return "".join(it if it.isprintable() else it.encode("unicode_escape", "surrogatepass").decode() for it in text)


def width(names: Iterable[str]) -> int:
    """Return the width of the column that names need."""
    return max((len(printable(name)) for name in names), default=0)


def line(name: str, result: Prediction | Number | DigitsError, width: int) -> str:
    """Return a row: name, label or number, (least) confidence, model of a label, what is odd; or what was wrong."""
    if isinstance(result, DigitsError):
        told = ["-", printable(str(result).removeprefix(f"{name}: "))]
    elif isinstance(result, Number):
        least = min((digit.prediction.confidence for digit in result.digits), default=0.0)
        remarks = {str(flag.name) for digit in result.digits for flag in digit.prediction.quality}
        remarks |= {"TOUCHING" for digit in result.digits if digit.is_touching}
        told = [printable(result.text), f"{least:6.1%}", *sorted(remarks)]
    else:
        told = [printable(result.label), f"{result.confidence:6.1%}", f"{result.model}/{result.version}"]
        told += [str(flag.name) for flag in result.quality]
    return "  ".join([f"{printable(name):{width}}", *told])


def as_json(name: str, result: Prediction | Number | DigitsError) -> str:
    """Return one JSON object: `file`, and either `error` or what was recognised, to the last digit."""
    told: dict[str, Any]
    if isinstance(result, DigitsError):
        told = {"error": str(result)}
    elif isinstance(result, Number):
        digits = [
            {"box": digit.box, **_prediction(digit.prediction), "is_touching": digit.is_touching}
            for digit in result.digits
        ]
        told = {"text": result.text, "digits": digits}
    else:
        told = {"digit": result.digit, **_prediction(result), "model": result.model, "version": result.version}
    return json.dumps({"file": name, **told})


def _prediction(prediction: Prediction) -> dict[str, Any]:
    return {
        "label": prediction.label,
        "confidence": prediction.confidence,
        "probabilities": prediction.probabilities.tolist(),
        "quality": [flag.name for flag in prediction.quality],
    }


def drawing(image: _requests.ImageLike, prediction: Prediction, encoding: str) -> str:
    """Return the 28 x 28 image that the server got, with a bar for each class beside it, or for the ten best."""
    shades, bar = (SHADES, BAR) if _has(encoding, SHADES) else (PLAIN_SHADES, PLAIN_BAR)
    pixels = _requests.prepare(image).reshape(_arrays.SIDE // 2, 2, _arrays.SIDE)
    ink = pixels.mean(axis=1) / (255 if pixels.dtype == np.uint8 else 1)  # two rows a line
    left = ["".join(shades[shade] for shade in row) for row in np.ceil(ink * (len(shades) - 1)).astype(int)]
    best = sorted(np.argsort(-prediction.probabilities, kind="stable")[:BARS].tolist())
    labels = [printable(prediction.classes[digit] if digit < len(prediction.classes) else str(digit)) for digit in best]
    width = max(map(len, labels), default=0)
    bars = [
        f"{label:{width}} {bar * round(float(share) * BAR_LENGTH):{BAR_LENGTH}} {share:6.1%}"
        for label, share in zip(labels, prediction.probabilities[best], strict=True)
    ]
    right = ["", "", *bars, *[""] * (len(left) - 2 - len(bars))]
    return "\n".join(f"{row}   {bar}".rstrip() for row, bar in zip(left, right, strict=True))


def model_line(model: Model, width: int) -> str:
    """Return a row of the list of models, 100 characters at most."""
    parts = [f"{printable(f'{model.name}/{model.version}'):{width}}", model.state + ", default" * model.is_default]
    if model.is_serving:
        accuracy = f"{model.test_accuracy:.2%}" if model.test_accuracy else "unknown"
        parts += [f"{len(model.labels)} classes", f"accuracy {accuracy}", f"batching gains {model.batching_gain:.1f}x"]
    if model.reason:
        parts.append(f"({printable(' '.join(model.reason.split()))})")
    line = "  ".join(parts)
    return line if len(line) <= WIDTH else line[: WIDTH - 1].rstrip() + "~"


def model_details(model: Model) -> str:
    """Return what stands below a model's row: its whole reason, labels and costs, a line each."""
    details = {
        "reason": " ".join(model.reason.split()),
        "measured on": model.dataset,
        "labels": ", ".join(model.labels),
        "time of a batch": ", ".join(f"{size} in {cost * 1e6:,.0f} us" for size, cost in model.batch_costs.items()),
    }
    return "".join(f"\n    {name}: {printable(text)}" for name, text in details.items() if text)


def _has(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
