"""The JSON API: each answer as an endpoint gives it. `openapi.json` describes it to others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from digits_client import AsyncDigitClient, Prediction, Quality, Rows
from digits_web import uploads
from digits_web.problems import Problem
from digits_web.stats import Stats

OPENAPI = Path(__file__).parent / "openapi.json"
TOP = 3


class Api:
    """The endpoints.

    Args:
        client: What they ask.
        server: Where that is, for errors.
        stats: The live figures.
        max_upload_bytes: Largest request body.
    """

    def __init__(self, client: AsyncDigitClient, server: str, stats: Stats, max_upload_bytes: int) -> None:
        self._client = client
        self._server = server
        self._stats = stats
        self._limit = max_upload_bytes

    async def alive(self, _: Request) -> Response:
        """Say that the gateway itself is up; whether the server is, /api/health tells."""
        return PlainTextResponse("ok\n")

    async def classify(self, request: Request) -> Response:
        """Say which digit the image in the body shows."""
        image = await uploads.image(request, self._limit)
        return JSONResponse(answer(await self._client.classify(image[0]), image))

    async def models(self, _: Request) -> Response:
        """List the models that the server knows."""
        return JSONResponse({"models": [dataclasses.asdict(model) for model in await self._client.models()]})

    async def health(self, _: Request) -> Response:
        """Say whether the server is ready: 200 if it is, 503 with the reason if not."""
        if not await self._client.health(timeout_s=1):
            raise Problem(503, f"The server at {self._server} is not ready.", {"retry-after": "1"})
        return JSONResponse({"ready": True, "server": self._server})

    async def stats(self, _: Request) -> Response:
        """Give the server's own latency and throughput of the last seconds."""
        return JSONResponse(await self._stats.latest())

    async def openapi(self, _: Request) -> Response:
        """Describe this API."""
        return FileResponse(OPENAPI)


def answer(prediction: Prediction, image: Rows) -> dict[str, Any]:
    """Return what the API says about an image, (1, 784)."""
    pixels = image[0] if image.dtype == np.uint8 else np.rint(image[0].clip(0, 1) * 255)
    probabilities = [round(probability, 6) for probability in prediction.probabilities.tolist()]
    best = sorted(range(len(probabilities)), key=lambda digit: -probabilities[digit])[:TOP]
    return {
        "digit": prediction.digit,
        "confidence": round(prediction.confidence, 6),
        "abstains": bool(prediction.quality & (Quality.LOW_CONFIDENCE | Quality.BLANK)),
        "probabilities": probabilities,
        "top": [{"digit": digit, "probability": probabilities[digit]} for digit in best],
        "quality": [flag.name for flag in prediction.quality],
        "pixels": pixels.astype(int).tolist(),
        "model": prediction.model,
        "version": prediction.version,
        "timing": dataclasses.asdict(prediction.timing),
    }
