"""A process that is Envoy with Python inside: how it begins to serve, listens, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import pkgutil
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digits_server.addresses import Address
from digits_server.config import Config, SettingRefused
from digits_server.rpc.call import Event, Receive, Send
from digits_server.rpc.envoy import Server
from digits_server.rpc.envoy_start import FOLDER
from digits_server.rpc.grpcio import FLUSH_S, within

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Interceptor
    from digits_server.rpc.security import Access
    from digits_server.rpc.tls import Certificate

log = logging.getLogger(__name__)

POLL_S = 0.02
"""Time between looks at whether Envoy listens, or has sent the last answers."""
LISTEN_S = 20.0
"""Time for it to listen."""


class _Process:
    """What the ASGI application of this process shares with the front that is made in it."""

    server: Server
    is_ready = asyncio.Event()
    """Whether Envoy may listen."""


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """Be the application that Envoy asks: first to begin, then to answer calls."""
    if scope["type"] == "http":
        await _Process.server(scope, receive, send)
        return
    await receive()
    serving = asyncio.create_task(_serve())
    ready = asyncio.create_task(_Process.is_ready.wait())
    await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
    await send({"type": "lifespan.startup.complete"})
    await serving


async def _serve() -> None:
    folder = Path(os.environ[FOLDER])
    status = 1
    try:
        serve, arguments = pickle.loads((folder / "start").read_bytes())  # noqa: S301 - we have written it
        status = await pkgutil.resolve_name(serve)(*arguments)
    except BaseException:
        log.critical("ended by an error", exc_info=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        logging.shutdown()
        os._exit(status)  # Envoy would take its time, and nothing is left to be done


class Envoy:
    """Listens with the Envoy around this process. Make it on the event loop that serves.

    Args:
        config: The settings.
        interceptor: What every RPC passes.
    """

    name = "envoy"

    def __init__(self, config: Config, interceptor: Interceptor) -> None:
        self._config = config
        self._folder = Path(os.environ[FOLDER])
        self._server = _Process.server = Server(interceptor)

    def on_signals(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Have signals of the process call these, on the event loop."""
        loop = asyncio.get_running_loop()

        def wait() -> None:
            while True:
                loop.call_soon_threadsafe(handlers[signal.Signals(signal.sigwait(handlers))])

        threading.Thread(target=wait, name="signals", daemon=True).start()

    async def start(self, access: Access) -> int:
        """Let Envoy listen, and begin to answer; return the port.

        Raises:
            SettingRefused: The address can't be had.
        """
        access.on_certificate(self._hand_over)
        self._server.start()
        _Process.is_ready.set()
        try:
            async with asyncio.timeout(LISTEN_S):
                await self._until(b"LIVE", "/ready")
        except TimeoutError:
            address = Address(self._config.host, self._config.port)
            raise SettingRefused("--port", f"Envoy does not listen on {address}; its log tells more") from None
        return self._config.port

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> bool:
        """Close the port, let each answer send its client elsewhere (GOAWAY), and wait for the calls in flight."""
        for command in ("/healthcheck/fail", "/drain_listeners"):
            await self._ask("POST", command)
        is_finished = await within(grace_s, finished)
        with contextlib.suppress(TimeoutError):  # what is left then are endless streams (health watches)
            async with asyncio.timeout(FLUSH_S):
                await self._until(b"rq_active: 0", "/stats?filter=^http.grpc.downstream_rq_active$")
        return is_finished

    def _hand_over(self, certificate: Certificate) -> None:
        """Give Envoy a certificate that has proved usable; it takes what is moved into the place of the old one."""
        pair = {"certificate_chain": _inline(certificate.chain), "private_key": _inline(certificate.key)}
        self._write("server", {"tls_certificate": pair})
        if certificate.authorities is not None:
            self._write("clients", {"validation_context": {"trusted_ca": _inline(certificate.authorities)}})

    def _write(self, name: str, secret: dict[str, Any]) -> None:
        resource = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": name}
        part = self._folder / f"{name}.part"
        with open(part, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump({"resources": [resource | secret]}, file)
        part.rename(self._folder / f"{name}.yaml")

    async def _until(self, text: bytes, path: str) -> None:
        """Return once the answer of an admin endpoint holds a text: there is none to wait for."""
        while text not in await self._ask("GET", path):  # noqa: ASYNC110 - another program's state
            await asyncio.sleep(POLL_S)

    async def _ask(self, method: str, path: str) -> bytes:
        """Return the whole answer of Envoy's admin endpoint; empty: it does not listen yet."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._folder / "admin.sock")
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
            return await reader.read()
        except OSError:
            return b""
        finally:
            with contextlib.suppress(NameError):
                writer.close()


def _inline(pem: bytes) -> dict[str, str]:
    return {"inline_string": pem.decode()}
