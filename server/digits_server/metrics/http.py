"""The HTTP endpoints for machines that watch: `/metrics`, `/healthz`, `/readyz`. They live on threads of their own."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from digits_server.addresses import Address, cannot_listen
from digits_server.config import Config, SettingRefused

log = logging.getLogger(__name__)

CLOSE_S = 0.1
"""Time to close within; shorter ones wake an idle process more often."""
SCRAPE_S = 5.0
"""Time for `/metrics` to answer."""


def scrape(host: str, port: int) -> Iterable[Metric]:
    """Return what `/metrics` at an address shows.

    Raises:
        RuntimeError: Nobody answers there. A `ConnectionError` would pass for an RPC whose caller has left.
    """
    connection = http.client.HTTPConnection(Address(host, port).bare_host, port, timeout=SCRAPE_S)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            return list(text_string_to_metric_families(connection.getresponse().read().decode()))
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(f"no metrics at {Address(host, port)}: {error}") from error


class AdminServer:
    """Serves the endpoints while entered.

    Args:
        config: Says where to listen.
        registry: What `/metrics` shows.
        is_alive: Whether `/healthz` says yes.
        is_ready: Whether `/readyz` says yes.

    Raises:
        SettingRefused: The address can't be had.
    """

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry,
        *,
        is_alive: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        address = Address(config.metrics_host, config.metrics_port, "metrics-")
        if address.path is not None:
            raise SettingRefused("--metrics-host", f"{address} is a Unix socket; allowed are addresses of the network")
        family, (host, *_) = address.resolve()
        try:
            self._server = _Server(family, (str(host), address.port))
        except OSError as error:
            raise cannot_listen(address, error) from error
        self._server.registry, self._server.is_alive, self._server.is_ready = registry, is_alive, is_ready
        self.port: int = self._server.server_address[1]
        self.address = str(replace(address, port=self.port))
        """Host and port, as in a URL."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=[CLOSE_S], name="admin", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    registry: CollectorRegistry
    is_alive: Callable[[], bool]
    is_ready: Callable[[], bool]

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def handle_error(self, *_: object) -> None:
        """Log what is a fault of ours; that a scraper went away is none."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("an admin request failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a silent client may hold a thread
    server: _Server

    def do_GET(self) -> None:
        """Answer one request."""
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(self.server.registry), kind)
            case "/healthz":
                self._say("event loop", is_so=self.server.is_alive())
            case "/readyz":
                self._say("ready", is_so=self.server.is_ready())
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def _say(self, what: str, *, is_so: bool) -> None:
        status = HTTPStatus.OK if is_so else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, f"{what}: {'yes' if is_so else 'no'}\n".encode())

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a line for every scrape helps nobody."""
