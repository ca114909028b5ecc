"""The seam between the services and what carries them: everything about sockets and connections is decided here.

Both transports offer the interface of `grpc.aio.Server`, so services, interceptor and tests are the same on both. What
a transport can't do is refused when it is made, never ignored; docs/transports.md compares them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc

from digits_server.config import Config, SettingRefused, address_of

log = logging.getLogger(__name__)

FLUSH_S = 0.5
"""Time for the last answers to leave the sockets."""
HANDSHAKE_S = 20.0
"""Time for a client to say something after connecting."""
MAX_CONNECTIONS = 1000
"""Fewer than the 1024 open files that a process usually may have."""
MAX_CONNECTION_AGE_S = 300.0
"""Long-lived clients come to know new workers."""
MAX_STREAMS = 1024
"""Calls at once on a connection."""
MAX_METADATA_BYTES = 16 * 1024
MIN_PING_INTERVAL_S = 0.5
"""Clients of ours ask every second, while calls wait, whether this host is still there; gRPC's own limit is 300 s."""


Metadata = Sequence[tuple[str, str | bytes]]


class Carrier(Protocol):
    """Takes the answers to calls of methods that are served directly: by function calls instead of tasks."""

    calls: dict[int, DirectCall]
    """Those without an answer, by id."""

    def respond(self, call_id: int, data: bytes, trailers: Metadata) -> None:
        """Answer with a message, and status OK."""

    def fail(self, call_id: int, code: grpc.StatusCode, message: str, trailers: Metadata = ()) -> None:
        """Answer with a status."""


class DirectCall(Protocol):
    """A call of such a method, or several that came together."""

    def leave(self, call_id: int) -> None:
        """Give one up: its caller has left, or its deadline has passed."""


Arrival = tuple[int, bytes, Metadata, float | None]
"""A call's id, its message, its metadata, and the seconds left to answer it if they are known."""
DirectMethod = Callable[[Carrier, Sequence[Arrival], float], None]
"""Begins to answer calls that came together, given where the answers go, and the monotonic time when they came."""


class Transport(Protocol):
    """What carries RPCs between sockets and services."""

    name: str
    server: grpc.aio.Server
    """Services are added to it; it is started when the port is bound."""
    allows_pushback: bool
    """Whether a refusal may carry the trailer `grpc-retry-pushback-ms`."""

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> bool:
        """Take no more work, stop as soon as `finished` returns, or after `grace_s`, and return which it was."""

    def add_direct(self, path: str, method: DirectMethod) -> None:
        """Serve a unary method directly, if this transport can; its handler is added to the server as well."""


class Grpcio:
    """grpcio's asyncio stack: everything works."""

    name = "grpcio"
    allows_pushback = True

    def __init__(self, config: Config) -> None:
        options = [
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.max_connection_age_ms", _ms(config.max_connection_age_s or MAX_CONNECTION_AGE_S)),
            ("grpc.max_connection_age_grace_ms", _ms(config.grace_s)),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(MIN_PING_INTERVAL_S)),
            ("grpc.keepalive_permit_without_calls", 1),  # clients may look after idle connections, at that pace
            ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_S)),
            # A message of 4 MB can unpack to 4 GB, and gRPC limits only the packed size.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.enable_channelz", int(config.channelz)),
        ]
        self.server = grpc.aio.server(options=_options(config) + options)

    def add_direct(self, path: str, method: DirectMethod) -> None:
        """Do nothing: here every call is a task."""

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> bool:
        """Close the port and tell clients to go elsewhere (GOAWAY), then as the protocol says."""
        stopping = asyncio.create_task(self.server.stop(grace_s + FLUSH_S))
        is_finished = await _within(grace_s, finished)
        await self.server.stop(FLUSH_S)  # what is left are endless streams (health watches), or those out of time
        await stopping
        return is_finished


class Native:
    """pygrpc-native: HTTP/2 in Rust, outside the interpreter lock.

    Raises:
        SettingRefused: The package is not installed, or can't do what is asked of it.
    """

    name = "native"
    allows_pushback = False  # it takes the trailer for a reserved one, and the call hangs until its deadline

    def __init__(self, config: Config) -> None:
        for field in ("tls_cert", "channelz", "max_connection_age_s"):
            if value := getattr(config, field):
                raise SettingRefused(
                    f"--{field.replace('_', '-')}", f"{value} can't be had of native; grpcio can do it"
                )
        if not config.is_local:
            log.warning("native looks at a message's size only after receiving and unpacking it: trust who can connect")
        try:
            from digits_server.rpc.native import Server  # noqa: PLC0415 - it needs an optional dependency
        except ImportError as error:
            raise SettingRefused(
                "--transport", "native needs the package pygrpc-native: digits-server[native]"
            ) from error
        # More threads for HTTP/2 than CPUs only take turns.
        server = Server(_options(config), io_threads=min(2, config.cpus))
        self.add_direct = server.add_direct
        self.server: Any = server

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> bool:
        """As the protocol says. The port stays open meanwhile: callers are told UNAVAILABLE, not refused to connect."""
        is_finished = await _within(grace_s, finished)
        await self.server.stop(FLUSH_S)
        return is_finished


class _Quiet(logging.Filter):
    """Keeps away the stacks that grpcio logs for what clients do: odd metadata, leaving before the answer."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ not in {"UnicodeDecodeError", "ExecuteBatchError"}


def make(config: Config) -> Transport:
    """Return the transport that `config` asks for. `auto` is grpcio, until native has passed every suite that it has.

    Raises:
        SettingRefused: It can't do what `config` asks for.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_Quiet())
    return Native(config) if config.transport == "native" else Grpcio(config)


def bind(transport: Transport, config: Config, credentials: grpc.ServerCredentials | None) -> int:
    """Let a transport listen where `config` says, in plain text without credentials, and return the port.

    Raises:
        SettingRefused: The port can't be had.
    """
    address = address_of(config.host, config.port)
    try:
        if credentials:
            return transport.server.add_secure_port(address, credentials)
        return transport.server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingRefused("--port", f"can't listen on {address}; is it in use?") from error


def _options(config: Config) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),  # above it some calls fail by chance, so none shall pass
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Only workers share their port: a second server must fail on it, not take a part of the calls by accident.
        ("grpc.so_reuseport", int(config.workers > 1)),
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


async def _within(grace_s: float, finished: Callable[[], Awaitable[None]]) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await finished()
            return True
    return False
