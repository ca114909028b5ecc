"""How a client reaches its servers: target, options of the channels, credentials. Nothing here opens a connection."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from digits_client import _wire
from digits_client._errors import ClientClosed

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 5.0
DEFAULT_CONNECTIONS = 2
STREAM_TIMEOUT_S = 3600.0
"""A stream lasts as long as its images come; still it must end some day if the server has forgotten it."""

CLASSIFY, CLASSIFY_STREAM, LIST_MODELS = (
    f"/digits.v1.DigitClassifier/{rpc}" for rpc in ("Classify", "ClassifyStream", "ListModels")
)
CHECK = "/grpc.health.v1.Health/Check"

SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "digits.v1.DigitClassifier"}],
            "retryPolicy": {  # gRFC A6; all calls are reads, so a second try does no harm
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                # RESOURCE_EXHAUSTED: the queue was full. The server says when to come back, or that it is no use, in
                # grpc-retry-pushback-ms. It is also gRPC's word for a message that is too large; ours never are.
                # CANCELLED: gRPC's own server says that of calls which arrive in the moment it shuts down.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ],
    # A dead server must not be buried under retries; before they stop, half as many calls as this may fail at once,
    # in one channel, as when one of several servers falls silent.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.per_rpc_retry_buffer_size", 4 << 20),  # gRPC never retries a larger request, and its default is 256 KiB
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one server share one connection, and so one worker
    # A host that falls silent is noticed while calls wait, early enough to ask another within the deadline: what it
    # does not acknowledge ends its connection after the timeout (TCP_USER_TIMEOUT), and so does an unanswered ping.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.http2.max_pings_without_data", 0),  # as many as it takes: a stream may be silent for long
    # A restarted server is found within seconds; gRPC's defaults are 20 s for a try, and up to two minutes between two.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)


@dataclass(frozen=True)
class Tls:
    """Encrypts the connection and checks who answers; all files are PEM."""

    ca: str | Path | None = None
    """Certificates of the authorities to trust; None: those that gRPC brings."""
    certificate: str | Path | None = None
    """Own certificate, for servers that ask who calls (mTLS)."""
    key: str | Path | None = None
    """Private key of `certificate`."""
    server_name: str = ""
    """Name that the server's certificate must carry, where it is not the address."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return what gRPC needs of them.

        Raises:
            OSError: A file can't be read.
            ValueError: A file is empty, or of certificate and key only one is given: gRPC would end the process.
        """
        files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        pem = {name: Path(file).read_bytes() for name, file in files.items() if file}
        if not all(pem.values()) or ("certificate" in pem) != ("key" in pem):
            given = ", ".join(f"{name}: {files[name]}, {len(pem[name])} bytes" for name in pem)
            raise ValueError(f"tls: {given}; allowed are files with contents, certificate and key both or neither")
        return grpc.ssl_channel_credentials(pem.get("ca"), pem.get("key"), pem.get("certificate"))


class BaseClient:
    """What both clients have in common, none of which is I/O: see `DigitClient` for the arguments."""

    def __init__(
        self,
        server: str | Sequence[str] = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        model: str = "",
        version: str = "",
        connections: int = DEFAULT_CONNECTIONS,
        tls: Tls | None = None,
        token: str = "",
    ) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s: {timeout_s}; allowed are numbers above 0, in seconds")
        if connections < 1:
            raise ValueError(f"connections: {connections}; allowed are 1 and more")
        self._timeout_s = timeout_s
        self._options = _wire.options(model, version)
        self._connections = connections
        self._target = target(server)
        self._credentials = tls.credentials() if tls else None
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        names = []
        if tls and tls.server_name:
            names = [("grpc.ssl_target_name_override", tls.server_name)]
        elif not isinstance(server, str):  # else gRPC calls the whole list the host's name, which some servers refuse
            names = [("grpc.default_authority", server[0])]
        self._channel_options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, *names]
        self._channels: list[Any] = []
        self._process = os.getpid()
        self._is_closed = False
        self._tracing = tracing()
        self._start()

    def _start(self) -> None:
        """Do what a kind of client does when it is made."""

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ClientClosed("the client is closed")
        if self._process != os.getpid():
            raise ClientClosed(
                "the client belongs to the process that this one was forked from, with gRPC's threads, which a fork "
                "does not copy; make clients after the fork, or start processes with 'spawn'"
            )

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


def callables(channel: Any) -> dict[str, Any]:
    """Return what calls the methods on a channel, by their names: bytes in, bytes out."""
    return {
        **{method: channel.unary_unary(method) for method in (CLASSIFY, LIST_MODELS, CHECK)},
        CLASSIFY_STREAM: channel.stream_stream(CLASSIFY_STREAM),
    }


def tracing() -> Any:
    """Return the module that makes spans; None if the application has not set up OpenTelemetry."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    from digits_client import _tracing  # noqa: PLC0415 - needs OpenTelemetry, which is the application's

    return _tracing


def target(server: str | Sequence[str]) -> str:
    """Return gRPC's name for one server or several.

    Raises:
        ValueError: There are none; or there are several, and not all IPv4 or all IPv6 addresses.
    """
    if isinstance(server, str):
        return server
    kinds = {_kind(address) for address in server}
    if len(kinds) != 1 or "" in kinds:
        raise ValueError(
            f"server: {list(server)}; several servers are given as addresses, all IPv4 as in 10.0.0.1:50051 or all "
            "IPv6 as in [::1]:50051; a name with several addresses is given as 'dns:///name:port'"
        )
    return f"{kinds.pop()}:{','.join(server)}"


def _kind(address: str) -> str:
    """Return "ipv4", "ipv6" or, for what is not `address:port`, ""."""
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return ""
    return f"ipv{ip.version}" if port.isdecimal() else ""
