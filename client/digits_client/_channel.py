"""How a client reaches its servers: the methods, what gRPC is told about connections and retries, credentials."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

CLASSIFY, CLASSIFY_STREAM, LIST_MODELS = (
    f"/digits.v1.DigitClassifier/{rpc}" for rpc in ("Classify", "ClassifyStream", "ListModels")
)
CHECK = "/grpc.health.v1.Health/Check"
CALLS_AT_ONCE = 2
"""Calls of `classify_many` in flight: one travels while the other is computed; more gained nothing when measured."""

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
            ValueError: A file is not PEM, or of certificate and key only one is given: gRPC would end the process, or
                find out at the first call.
        """
        files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        pem = {name: Path(file).read_bytes() for name, file in files.items() if file}
        if not all(b"-----BEGIN " in text for text in pem.values()) or ("certificate" in pem) != ("key" in pem):
            given = ", ".join(f"{name}: {files[name]}, {len(pem[name])} bytes" for name in pem)
            raise ValueError(f"tls: {given}; allowed are PEM files, certificate and key both or neither")
        return grpc.ssl_channel_credentials(pem.get("ca"), pem.get("key"), pem.get("certificate"))


@dataclass(frozen=True)
class Connection:
    """All that the channels of a client are made of."""

    target: str
    """gRPC's name for the servers."""
    options: Sequence[tuple[str, int | str]]
    """Of each channel."""
    credentials: grpc.ChannelCredentials | None
    metadata: Sequence[tuple[str, str]] | None
    """Sent with each call."""
    interceptors: Sequence[Any]
    """grpc's, of the client's kind."""
    connections: int
    """Channels, each with a connection of its own to each server."""
    hint: str
    """What else to say when the servers can't be reached."""

    def channels(self, api: ModuleType, **settings: Any) -> list[Any]:
        """Return the channels, made by `grpc` or `grpc.aio`."""
        to = [self.target, self.credentials] if self.credentials else [self.target]
        make = api.secure_channel if self.credentials else api.insecure_channel
        return [make(*to, options=self.options, **settings) for _ in range(self.connections)]


def in_turn(channels: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield, without an end, what calls the methods on each of the channels, by their names: bytes in, bytes out."""
    return itertools.cycle(
        [
            {method: channel.unary_unary(method) for method in (CLASSIFY, LIST_MODELS, CHECK)}
            | {CLASSIFY_STREAM: channel.stream_stream(CLASSIFY_STREAM)}
            for channel in channels
        ]
    )
