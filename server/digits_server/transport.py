"""The seam between the services and what carries them: everything about sockets and connections is decided here.

Both transports offer the interface of `grpc.aio.Server`, so services, interceptor and tests are the same on both. What
a transport can't do is refused when it is made, never ignored; docs/transports.md compares them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc

from digits_server.config import Config, available_cpus
from digits_server.errors import SettingRefused

FLUSH_S = 0.5
"""Time for the last answers to leave the sockets."""


class Transport(Protocol):
    """What carries RPCs between sockets and services."""

    name: str
    server: grpc.aio.Server
    """Services are added to it; it is started when the port is bound."""
    allows_pushback: bool
    """Whether a refusal may carry the trailer `grpc-retry-pushback-ms`."""

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> None:
        """Take no more work, and stop as soon as `finished` returns, or after `grace_s`."""


class Grpcio:
    """grpcio's asyncio stack: everything works."""

    name = "grpcio"
    allows_pushback = True

    def __init__(self, config: Config) -> None:
        self.server = grpc.aio.server(options=_options(config))

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> None:
        """Close the port and tell clients to go elsewhere (GOAWAY), then as the protocol says."""
        stopping = asyncio.create_task(self.server.stop(grace_s))
        await _within(grace_s, finished)
        await self.server.stop(FLUSH_S)  # what is left are endless streams (health watches), or those out of time
        await stopping


class Native:
    """pygrpc-native's drop-in for grpcio's asyncio server: HTTP/2 in Rust, outside the interpreter lock.

    Raises:
        SettingRefused: The package is not installed.
    """

    name = "native"
    allows_pushback = False  # it takes the trailer for a reserved one, and the call hangs until its deadline

    def __init__(self, config: Config) -> None:
        try:
            import pygrpc_native.aio  # noqa: PLC0415 - an optional dependency
        except ImportError as error:
            raise SettingRefused(
                "--transport", "native needs the package pygrpc-native: digits-server[native]"
            ) from error
        # `Server`, not `server()`, to say how many threads do the HTTP/2 work: more than CPUs only take turns.
        self.server: grpc.aio.Server = pygrpc_native.aio.Server(
            options=_options(config), io_threads=min(2, available_cpus())
        )

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> None:
        """As the protocol says. The port stays open meanwhile: callers are told UNAVAILABLE, not refused to connect."""
        await _within(grace_s, finished)
        await self.server.stop(FLUSH_S)


def make(config: Config) -> Transport:
    """Return the transport that `config` asks for. `auto` is grpcio, until native has passed every suite that it has.

    Raises:
        SettingRefused: It can't do what `config` asks for.
    """
    return Native(config) if config.transport == "native" else Grpcio(config)


def bind(transport: Transport, config: Config) -> int:
    """Let a transport listen where `config` says and return the port.

    Raises:
        SettingRefused: The port can't be had.
    """
    try:
        return transport.server.add_insecure_port(f"{config.host}:{config.port}")
    except RuntimeError as error:
        raise SettingRefused("--port", f"can't listen on {config.host}:{config.port}; is it in use?") from error


def _options(config: Config) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),  # a second server on a busy port must fail, not share it by accident
    ]


async def _within(grace_s: float, finished: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await finished()
