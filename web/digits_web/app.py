"""The gateway put together: routes, headers, and the client that lives as long as the application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from digits_client import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, AsyncDigitClient, Tls
from digits_web import problems
from digits_web.api import Api
from digits_web.models import Models
from digits_web.stats import Stats

PAGE = Path(__file__).parent / "page"

HEADERS = {
    # Nothing from outside, nothing inline; blob: is how the page looks at a photograph before it sends it.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Config:
    """Settings of one gateway."""

    server: str = DEFAULT_SERVER
    """The Digits server, `host:port` or any target that gRPC resolves."""
    tls: Tls | None = None
    """Encrypts the way there; None: plain text."""
    token: str = ""
    """Bearer token of the gateway, where the server wants one."""
    metrics_url: str = "http://127.0.0.1:9464/metrics"
    """The server's metrics endpoint; empty: there are no live figures."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long an answer of the server may take, in seconds."""
    max_upload_bytes: int = 10 * 1024 * 1024
    """Largest request body; a telephone's photograph has 2 to 8 MB."""


def create_app(config: Config, middleware: Sequence[Middleware] = ()) -> Starlette:
    """Return the ASGI application. It connects when somebody asks it, and disconnects when it shuts down.

    Args:
        config: The settings.
        middleware: What requests pass before ours.

    Raises:
        OSError, ValueError: A setting can't be used.
    """
    if not config.metrics_url.startswith(("http://", "https://")) and config.metrics_url:
        raise ValueError(f"--metrics-url: {config.metrics_url!r}; allowed are http://... and https://..., or nothing")

    def connect(model: str) -> AsyncDigitClient:
        return AsyncDigitClient(
            config.server, timeout_s=config.timeout_s, tls=config.tls, token=config.token, model=model
        )

    models = Models(connect)
    api = Api(models, config.server, Stats(config.metrics_url), config.max_upload_bytes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with aclosing(models):
            yield

    return Starlette(
        routes=[
            Route("/healthz", api.alive),
            Mount(
                "/api",
                routes=[
                    Route("/classify", api.classify, methods=["POST"]),
                    Route("/read", api.read, methods=["POST"]),
                    Route("/models", api.models),
                    Route("/health", api.health),
                    Route("/stats", api.stats),
                    Route("/openapi.json", api.openapi),
                ],
            ),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[*middleware, Middleware(Headers)],
        exception_handlers=problems.handlers(config.server, {**HEADERS, "cache-control": "no-store"}),
        lifespan=lifespan,
    )


class Headers:
    """Adds what every answer carries: the security headers, and that nothing may be shown unasked from a cache."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["cache-control"] = "no-store" if scope["path"].startswith("/api/") else "no-cache"
            await send(message)

        await self._app(scope, receive, send_with_headers)
