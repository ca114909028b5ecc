"""Results as a terminal shows them: lines, JSON, and the digit drawn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from digits_client import _images
from digits_client._errors import DigitsError
from digits_client._messages import Prediction

SHADES = " ░▒▓█"
BAR = 30  # characters of a bar for 100 %


def line(name: str, result: Prediction | DigitsError, width: int) -> str:
    """Return a row of the table: name, digit, confidence, model, what is odd; or what was wrong."""
    if isinstance(result, DigitsError):
        return f"{name:{width}}  -  {result}"
    remarks = "".join(f"  {flag.name}" for flag in result.quality)
    return f"{name:{width}}  {result.digit}  {result.confidence:6.1%}  {result.model}/{result.version}{remarks}"


def as_json(name: str, result: Prediction | DigitsError) -> str:
    """Return one JSON object: `file`, and either `error` or what was recognised."""
    answer: dict[str, Any] = {"file": name}
    if isinstance(result, DigitsError):
        answer["error"] = str(result)
    else:
        answer |= {
            "digit": result.digit,
            "confidence": round(result.confidence, 6),
            "probabilities": [round(p, 6) for p in result.probabilities.tolist()],
            "quality": [flag.name for flag in result.quality],
            "model": result.model,
            "version": result.version,
        }
    return json.dumps(answer)


def drawing(image: _images.ImageLike, prediction: Prediction) -> str:
    """Return the 28 x 28 image that the server got, with a bar for each digit beside it."""
    ink = _images.prepare(image).reshape(_images.SIDE // 2, 2, _images.SIDE).mean(axis=1) / 255  # two rows a line
    shades = np.ceil(ink * (len(SHADES) - 1)).astype(int)
    left = ["".join(SHADES[shade] for shade in row) for row in shades]
    bars = [
        f"{digit} {'█' * round(share * BAR):{BAR}} {share:6.1%}" for digit, share in enumerate(prediction.probabilities)
    ]
    right = ["", "", *bars, "", ""]
    return "\n".join(f"{row}   {bar}".rstrip() for row, bar in zip(left, right, strict=True))
