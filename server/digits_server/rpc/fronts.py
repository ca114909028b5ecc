"""The seam between the services and what carries them: a front owns sockets, connections and the process they live in.

Both fronts take the handlers that one interceptor has wrapped, so services and tests are
the same on both. What a front can't do is refused at the start, never ignored; docs/transports.md compares them.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from digits_server.config import Config, SettingRefused

if TYPE_CHECKING:
    from digits_server.rpc.interceptor import Interceptor
    from digits_server.rpc.security import Access


class Front(Protocol):
    """What carries RPCs between sockets and services."""

    name: str

    def on_signals(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Have signals of the process call these, on the event loop."""

    async def start(self, access: Access) -> int:
        """Listen, and begin to answer; return the port, 0 for a Unix socket.

        Raises:
            SettingRefused: The address can't be had.
        """

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> bool:
        """Take no more work, stop as soon as `finished` returns, or after `grace_s`, and return which it was."""


def choose(config: Config) -> str:
    """Return the front that a server with these settings has: `grpcio` or `envoy`. Loads neither of them.

    Raises:
        SettingRefused: It can't run here, or can't do what is asked of it.
    """
    if config.transport == "grpcio":
        return "grpcio"
    obstacle = obstacle_to_envoy(config)
    if obstacle is None:
        return "envoy"
    if config.transport == "auto":
        return "grpcio"
    raise SettingRefused("--transport", f"envoy {obstacle}; grpcio can do it")


def obstacle_to_envoy(config: Config) -> str | None:
    """Return why Envoy can't carry RPCs here, as the end of a sentence; None: it can."""
    if config.channelz:
        return "has no channelz"
    if importlib.util.find_spec("pyvoy") is None:
        return "needs the package pyvoy: digits-server[envoy]"
    import find_libpython  # noqa: PLC0415 - comes with pyvoy

    if not find_libpython.find_libpython():
        return "needs a Python with a shared libpython, which this one is not"
    return None


def make(config: Config, interceptor: Interceptor) -> Front:
    """Return the front of a serving process; `run` has chosen what that is."""
    if choose(config) == "grpcio":
        from digits_server.rpc.grpcio import Grpcio  # noqa: PLC0415 - a supervisor that chooses has no use for grpc

        return Grpcio(config, interceptor)
    from digits_server.rpc.envoy_process import Envoy  # noqa: PLC0415 - needs an optional dependency

    return Envoy(config, interceptor)


def run(config: Config, serve: str, *arguments: object) -> int:
    """Run a coroutine on an event loop under the front that the settings ask for; return its exit status.

    With Envoy this process becomes Envoy, with Python inside, and never returns; inheritable files stay open.

    Args:
        config: The settings.
        serve: The coroutine function's name, `module:function`: with Envoy it is imported in the new program only.
        arguments: Its arguments; with Envoy they are pickled.
    """
    if choose(config) == "envoy":
        from digits_server.rpc.envoy_start import become  # noqa: PLC0415 - needs an optional dependency

        become(config, serve, arguments)
    import uvloop  # noqa: PLC0415 - Envoy's loop is made elsewhere

    status: int = uvloop.run(pkgutil.resolve_name(serve)(*arguments))
    return status
