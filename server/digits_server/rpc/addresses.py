"""Where to listen: `--host` and `--port` in each spelling that people use, and why an address can't be had."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from digits_server.config import SettingRefused

UNIX = "unix:"


@dataclass(frozen=True)
class Address:
    """An address to listen on.

    Raises:
        SettingRefused: The host is no address and no name of one.
    """

    host: str
    """A name, an IPv4 address, an IPv6 address with or without brackets, or `unix:PATH`."""
    port: int
    """0: a free one. Means nothing to a Unix socket."""

    @property
    def path(self) -> str | None:
        """The path of a Unix socket; None: the address is of the network."""
        return self.host.removeprefix(UNIX) if self.host.startswith(UNIX) else None

    @property
    def bare_host(self) -> str:
        """The host without brackets, as the socket library wants it."""
        return self.host.strip("[]")

    def __str__(self) -> str:
        """Return the address as clients give it."""
        if self.path is not None:
            return self.host
        return f"[{self.bare_host}]:{self.port}" if ":" in self.bare_host else f"{self.bare_host}:{self.port}"

    def resolve(self) -> tuple[socket.AddressFamily, tuple[object, ...]]:
        """Return the family and the socket address.

        Raises:
            SettingRefused: The host means nothing here.
        """
        if self.path is not None:
            return socket.AF_UNIX, (self.path,)
        try:
            found = socket.getaddrinfo(
                self.bare_host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )
        except (OSError, UnicodeError) as error:
            raise SettingRefused("--host", f"{self.host}: {getattr(error, 'strerror', None) or error}") from error
        return found[0][0], found[0][4]


@contextlib.contextmanager
def reserved(address: Address, *, shared: bool) -> Iterator[Address]:
    """Make sure that an address can be had, and yield it with its port. While entered, it is held for who may share it.

    Who only binds and never listens gets no calls. A Unix socket that nobody listens on any more is removed.

    Args:
        address: Where; port 0 becomes a free one if it is shared, and stays 0 if not.
        shared: Whether several processes of this user are going to listen there, with SO_REUSEPORT.

    Raises:
        SettingRefused: It can't be had; the reason is the operating system's.
    """
    family, where = address.resolve()
    flag = "--host" if address.path is not None else "--port"
    try:
        if address.path is not None:
            _remove_stale(Path(address.path))
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Would someone who does not share get it? What is left of closed connections does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _both_stacks(probe, address)
            probe.bind(where if address.path is None else address.path)
            port = address.port if address.path is not None else probe.getsockname()[1]
        if address.path is not None:
            Path(address.path).unlink()
        if not shared or address.path is not None:
            yield address
            return
        with socket.socket(family, socket.SOCK_STREAM) as reserve:
            reserve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _both_stacks(reserve, address)
            reserve.bind((where[0], port, *where[2:]))
            yield replace(address, port=port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingRefused(flag, f"can't listen on {address}: {reason}") from error


def _both_stacks(listener: socket.socket, address: Address) -> None:
    """Let `::` take IPv4 too, as both fronts do."""
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.bare_host != "::"))


def _remove_stale(path: Path) -> None:
    """Remove a Unix socket that a server left when it was killed.

    Raises:
        OSError: Somebody listens on it, or it is something else.
    """
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
