"""Where to listen: hosts and ports in each spelling that people use, and why an address can't be had."""

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
    setting: str = ""
    """What the names of the settings begin with."""

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
            raise cannot_listen(self, error) from error
        return found[0][0], found[0][4]


def cannot_listen(address: Address, error: OSError | UnicodeError) -> SettingRefused:
    """Return what refuses an address, with the operating system's own reason."""
    is_port = address.path is None and getattr(error, "errno", None) in {errno.EADDRINUSE, errno.EACCES}
    return SettingRefused(
        f"--{address.setting}{'port' if is_port else 'host'}",
        f"can't listen on {address}: {getattr(error, 'strerror', None) or error}",
    )


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
    try:
        if address.path is not None:
            _remove_stale(Path(address.path))
        with _bound(address) as probe:  # would someone who does not share get it?
            port = 0 if address.path is not None else probe.getsockname()[1]
        if address.path is not None:
            Path(address.path).unlink()
        held = _bound(replace(address, port=port), is_shared=True) if shared and address.path is None else None
    except OSError as error:
        raise cannot_listen(address, error) from error
    if held is None:
        yield address
    else:
        with held:
            yield replace(address, port=port)


def _bound(address: Address, *, is_shared: bool = False) -> socket.socket:
    """Return a socket that is bound to an address, where what is left of closed connections does not count.

    Raises:
        SettingRefused: The host means nothing here.
        OSError: The address can't be had.
    """
    family, where = address.resolve()
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _both_stacks(bound, address)
        bound.bind(where if address.path is None else address.path)
    except OSError:
        bound.close()
        raise
    return bound


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
