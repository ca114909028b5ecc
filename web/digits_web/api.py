"""The JSON API: each answer as an endpoint gives it. `openapi.json` describes it to others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from digits_client import Prediction, Quality
from digits_web import uploads
from digits_web.models import Models
from digits_web.problems import Problem
from digits_web.stats import Stats

OPENAPI = Path(__file__).parent / "openapi.json"
TOP = 10


class Api:
    """The endpoints.

    Args:
        models: What they ask.
        server: Where that is, for errors.
        stats: The live figures.
        max_upload_bytes: Largest request body.
    """

    def __init__(self, models: Models, server: str, stats: Stats, max_upload_bytes: int) -> None:
        self._models = models
        self._server = server
        self._stats = stats
        self._limit = max_upload_bytes

    async def alive(self, _: Request) -> Response:
        """Say that the gateway itself is up; whether the server is, /api/health tells."""
        return PlainTextResponse("ok\n")

    async def classify(self, request: Request) -> Response:
        """Say what the image in the body shows."""
        image = await uploads.image(request, self._limit)
        client = await self._models.client(request.query_params.get("model", ""))
        prediction = await client.classify(image[0])
        pixels = image[0] if image.dtype == np.uint8 else np.rint(image[0].clip(0, 1) * 255).astype(np.uint8)
        return JSONResponse(answer(prediction, pixels))

    async def read(self, request: Request) -> Response:
        """Say which number the picture in the body shows, digit by digit."""
        picture, scale = await uploads.picture(request, self._limit)
        client = await self._models.client(request.query_params.get("model", ""))
        number = await client.read(picture)
        digits = [
            {
                "box": [round(edge * scale) for edge in digit.box],
                "is_touching": digit.is_touching,
                **answer(digit.prediction, digit.image),
            }
            for digit in number.digits
        ]
        size = {"width": round(picture.width * scale), "height": round(picture.height * scale)}
        return JSONResponse({"text": number.text, **size, "digits": digits})

    async def models(self, _: Request) -> Response:
        """List the models that the server knows."""
        return JSONResponse({"models": [dataclasses.asdict(model) for model in await self._models.default.models()]})

    async def health(self, _: Request) -> Response:
        """Say whether the server is ready: 200 if it is, 503 with the reason if not."""
        if not await self._models.default.health(timeout_s=1):
            raise Problem(503, f"The server at {self._server} is not ready.", {"retry-after": "1"})
        return JSONResponse({"ready": True, "server": self._server})

    async def stats(self, _: Request) -> Response:
        """Give the server's own latency and throughput of the last seconds."""
        return JSONResponse(await self._stats.latest())

    async def openapi(self, _: Request) -> Response:
        """Describe this API."""
        return FileResponse(OPENAPI)


def answer(prediction: Prediction, pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return what the API says about an image.

    Args:
        prediction: What the server says.
        pixels: (784,) or (28, 28), what the model got.
    """
    probabilities = [round(probability, 6) for probability in prediction.probabilities.tolist()]
    labels = prediction.classes or [str(index) for index in range(len(probabilities))]
    best = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])[:TOP]
    return {
        "digit": prediction.digit,
        "label": labels[prediction.digit],
        "confidence": round(prediction.confidence, 6),
        "abstains": bool(prediction.quality & (Quality.LOW_CONFIDENCE | Quality.BLANK)),
        "probabilities": probabilities,
        "top": [{"digit": index, "label": labels[index], "probability": probabilities[index]} for index in best],
        "quality": [flag.name for flag in prediction.quality],
        "pixels": pixels.ravel().tolist(),
        "model": prediction.model,
        "version": prediction.version,
        "timing": dataclasses.asdict(prediction.timing),
    }
