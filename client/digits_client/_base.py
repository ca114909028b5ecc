"""What both clients have in common, none of which is I/O: their arguments, checked, and whether they can be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Generic, NoReturn, TypeVar

from digits_client import _address, _codec
from digits_client._channel import CHANNEL_OPTIONS, Connection, Tls
from digits_client._errors import ClientClosed
from digits_client._results import Labels

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 5.0
STREAM_TIMEOUT_S = 3600.0
"""A stream lasts as long as its images come; still it must end some day if the server has forgotten it."""
MAX_TIMEOUT_S = 366 * 86_400.0
"""A year: grpc takes what it can't count in nanoseconds for no time at all."""
MIN_TIMEOUT_S = 0.001
MAX_CONNECTIONS = 1024

TransportT = TypeVar("TransportT")


class BaseClient(Generic[TransportT]):
    """What both clients have in common: see `DigitClient` for the arguments."""

    def __init__(
        self,
        server: str | Sequence[str] = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        model: str = "",
        version: str | int = "",
        connections: int = 2,
        tls: Tls | None = None,
        token: str = "",
        interceptors: Sequence[Any] = (),
        transport: TransportT | None = None,
    ) -> None:
        if type(connections) is not int or not 1 <= connections <= MAX_CONNECTIONS:
            raise ValueError(f"connections: {connections!r}; allowed are 1 to {MAX_CONNECTIONS}")
        if not isinstance(tls, Tls | None):
            raise ValueError(f"tls: {tls!r}; allowed are Tls(...), or None for plain text")  # noqa: TRY004 - as all
        self._timeout_s = seconds(timeout_s)
        version = str(version) if type(version) is int else version
        self._options = _codec.options(_text("model", model), _text("version", version))
        token = _token(token)
        options = [*CHANNEL_OPTIONS]
        target = _address.target(server)
        if _address.is_local(server):
            options.append(("grpc.enable_http_proxy", 0))
        if tls and tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        elif not isinstance(server, str):  # else gRPC calls the whole list the host's name, which some servers refuse
            options.append(("grpc.default_authority", server[0]))
        self._connection = Connection(
            target,
            options,
            tls.credentials() if tls else None,
            (("authorization", f"Bearer {token}"),) if token else None,
            tuple(interceptors or ()),
            connections,
            _address.proxy_hint(server),
        )
        self._transport = self._open() if transport is None else transport
        self._labels = Labels()
        self._process = os.getpid()
        self._is_closed = False

    def _open(self) -> TransportT | None:
        """Return what carries the calls, unless that has to wait for the first."""
        return None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be pickled or copied: make one in each process")

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ClientClosed("the client is closed")
        if self._process != os.getpid():
            raise ClientClosed(
                "the client belongs to the process that this one was forked from, with gRPC's threads, which a fork "
                "does not copy; make clients after the fork, or start processes with 'spawn'"
            )

    def _timeout(self, timeout_s: float | None) -> float:
        """Return the seconds that a call may take: what it says itself, else what the client does."""
        return self._timeout_s if timeout_s is None else seconds(timeout_s)


def seconds(timeout_s: float) -> float:
    """Return a timeout.

    Raises:
        ValueError: It is none that can be kept.
    """
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < timeout_s <= MAX_TIMEOUT_S:  # NaN compares false
        raise ValueError(
            f"timeout_s: {timeout_s!r}; allowed are numbers above 0, in seconds, up to {MAX_TIMEOUT_S:.0f} (a year)"
        )
    return float(timeout_s)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():  # lone surrogates, which can't be sent, aren't either
        raise ValueError(f"{name}: {value!r}; allowed is printable text")
    return value


def _token(token: object) -> str:
    """Return a token as it can be sent: without the white space that files and variables end with.

    Raises:
        ValueError: It can't be sent. The message does not repeat it, for messages end up in logs.
    """
    if not isinstance(token, str):
        raise ValueError(f"token: an object of type {type(token).__name__}; allowed is text")  # noqa: TRY004 - as all
    stripped = token.strip()
    if token and not stripped:
        raise ValueError("token: only white space; allowed are printable ASCII characters")
    for at, character in enumerate(stripped):
        if not "!" <= character <= "~":
            raise ValueError(f"token: {character!r} at position {at}; allowed are printable ASCII characters")
    return stripped
