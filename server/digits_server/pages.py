"""The HTTP pages for machines that watch: `/metrics`, `/healthz`, `/readyz`. They live on threads of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from digits_server.config import Config
from digits_server.errors import SettingRefused

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HEARTBEAT_S = 2.0
"""How long the event loop may take to answer before `/healthz` calls it hung."""


class Pages:
    """Serves the pages until closed.

    Args:
        config: Says where to listen.
        metrics: What answers `/metrics`.
        is_ready: Whether `/readyz` says yes.

    Raises:
        SettingRefused: The port can't be had.
    """

    def __init__(self, config: Config, *, metrics: WSGIApplication, is_ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._is_ready = is_ready
        self._loop = asyncio.get_running_loop()
        try:
            self._server = make_server(config.metrics_host, config.metrics_port, self._app, _Server, _Handler)
        except OSError as error:
            address = f"{config.metrics_host}:{config.metrics_port}"
            raise SettingRefused("--metrics-port", f"can't listen on {address}; is it in use?") from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="pages", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Takes up to half a second: not for the event loop's thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/healthz":
                ok, text = self._is_alive(), "event loop"
            case "/readyz":
                ok, text = self._is_ready(), "ready"
            case _:
                return _answer(start_response, HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /readyz")
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        return _answer(start_response, status, f"{text}: {'yes' if ok else 'no'}")

    def _is_alive(self) -> bool:
        beat = threading.Event()
        self._loop.call_soon_threadsafe(beat.set)
        return beat.wait(HEARTBEAT_S)


def _answer(start_response: StartResponse, status: HTTPStatus, text: str) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a silent client may hold a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: a line for every scrape helps nobody."""
