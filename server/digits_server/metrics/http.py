"""The HTTP pages for machines that watch: `/metrics`, `/healthz`, `/readyz`. They live on threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from digits_server.config import Config, SettingRefused, available_cpus
from digits_server.rpc.addresses import Address

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

CLOSE_S = 0.1
"""Time to close within; shorter ones wake an idle process more often."""


@dataclass(frozen=True)
class Ready:
    """What a process that serves says about itself."""

    port: int
    transport: str
    models: tuple[str, ...]
    """Each as `<name>/<version>`."""
    default_model: str


class Pages:
    """Serves the pages while entered.

    Args:
        config: Says where to listen.
        metrics: What answers `/metrics`.
        is_alive: Whether `/healthz` says yes.
        is_ready: Whether `/readyz` says yes.

    Raises:
        SettingRefused: The port can't be had.
    """

    def __init__(
        self,
        config: Config,
        *,
        metrics: WSGIApplication,
        is_alive: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._is_alive, self._is_ready = is_alive, is_ready
        try:
            self._server = make_server(config.metrics_host, config.metrics_port, self._app, _Server, _Handler)
        except OSError as error:
            address = f"{config.metrics_host}:{config.metrics_port}"
            raise SettingRefused("--metrics-port", f"can't listen on {address}; is it in use?") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=[CLOSE_S], name="pages", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def announce(self, ready: Ready, pids: Sequence[int]) -> None:
        """Print the one line that says where everything is."""
        config = self._config
        workers = f"{config.workers} worker(s) of {config.inference_threads} inference thread(s)"
        print(  # noqa: T201 - for people and for those who wait for the port; everything else is logged
            f"digits-server ready: gRPC {Address(config.host, ready.port)} ({ready.transport}), "
            f"metrics http://{config.metrics_host}:{self._server.server_port}/metrics, "
            f"models {', '.join(ready.models)} (default {ready.default_model}), {workers} "
            f"on {available_cpus()} CPU(s), pid {', '.join(map(str, pids))}",
            flush=True,
        )

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


def _answer(start_response: StartResponse, status: HTTPStatus, text: str) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a silent client may hold a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: a line for every scrape helps nobody."""
