"""What can be set: each setting with its default, what is allowed, and what it is for."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")


class SettingRefused(Exception):
    """Raise when a setting, though well-formed, can't work here.

    Args:
        flag: The setting, as on the command line.
        reason: The value, and what is wrong with it.
    """

    def __init__(self, flag: str, reason: str) -> None:
        super().__init__(flag, reason)
        self.flag = flag
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.flag}: {self.reason}"


WORKERS = click.IntRange(1, 256)


class Workers(click.ParamType[int]):
    """A number of processes, or `auto`, which is 0."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if value == "auto":
            return 0
        try:
            return WORKERS.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r}; allowed are auto and 1 to {WORKERS.max:g}", param, ctx)


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this process may keep busy, by affinity and cgroup quota (v2 or v1); at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, quota))


def _quota(cgroup: Path) -> int | None:
    """Return the whole CPUs that the cgroup mounted at `cgroup` grants; None: no limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
        except (OSError, ValueError):
            continue
        return None if quota in {"max", "-1"} else int(quota) // int(period)
    return None


def setting(
    default: T,
    help: str,  # noqa: A002 - click's names
    type: click.ParamType[object] | None = None,  # noqa: A002
    shown: str | None = None,
) -> T:
    """Return a field with a default, and with what the command line says of it; `shown` is its default there."""
    return field(default=default, metadata={"help": help, "type": type, "default": shown or default})


PORT = click.IntRange(0, 65535)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
SHARE = click.FloatRange(0, 1)
COUNT = click.IntRange(1)


@dataclass(frozen=True)
class Config:
    """Settings of one server; each is a flag and an environment variable of `digits-server`."""

    host: str = setting("127.0.0.1", "Address to listen on: a name, an IPv4 or IPv6 address, or unix:PATH.")
    port: int = setting(50051, "Port of the gRPC services; 0 picks a free one.", PORT)
    metrics_host: str = setting("127.0.0.1", "Address of /metrics, /healthz and /readyz.")
    metrics_port: int = setting(9464, "Their port; 0 picks a free one.", PORT)
    models: Path = setting(Path("models"), "Folder of model packages, <name>/<version>/.", FOLDER)
    default_model: str = setting("digits-mlp", "Model for requests that name none.")
    workers: int = setting(
        1,
        "Processes that share the port; auto: as many as there are CPUs for their inference threads.",
        Workers(),
        shown="auto",
    )
    inference_threads: int = setting(
        1,
        "Threads per onnxruntime run, at most the CPUs that affinity and cgroup allow.",
        click.IntRange(1, available_cpus()),
    )
    transport: str = setting(
        "auto",
        "Transport for RPCs: grpcio, or envoy (an extra, faster for many callers); auto: envoy where it can run.",
        click.Choice(["auto", "grpcio", "envoy"]),
    )
    max_batch_size: int | None = setting(
        None,
        "Maximum number of images run at once.  [default: measured at load, where images/s stop growing]",
        click.IntRange(1, 65536),
    )
    max_wait_ms: float = setting(
        0.0,
        "Longest wait for a batch to fill; 0: a lone request runs at once.",
        click.FloatRange(0, 10_000),
    )
    max_queue: int = setting(4096, "Maximum number of images waiting for one model, and in one request.", COUNT)
    max_connection_age_s: float = setting(
        300.0, "How long a connection lasts before its client must reconnect.", click.FloatRange(1, 10**6)
    )
    channelz: bool = setting(
        default=False, help="Serve grpc.channelz.v1, which lists the connections and their traffic."
    )
    tls_cert: Path | None = setting(None, "Certificate chain, PEM: serve TLS. Reloaded when it changes.", FILE)
    tls_key: Path | None = setting(None, "Its private key, PEM.", FILE)
    tls_client_ca: Path | None = setting(
        None, "CA certificates, PEM: require client certificates signed by them (mTLS).", FILE
    )
    token_file: Path | None = setting(None, "Bearer tokens and what they allow, TOML: see docs/security.md.", FILE)
    allow_plain_tokens: bool = setting(
        default=False, help="Accept tokens over plaintext from other hosts, as behind a proxy that terminates TLS."
    )
    reload_s: float = setting(1.0, "Time between scans of the models folder; 0: only on SIGHUP.", click.FloatRange(0))
    strict_readiness: bool = setting(
        default=False,
        help="Become ready only when every package in the folder is valid; by default, serve those that are, or exit.",
    )
    shadow: bool = setting(
        default=False,
        help="Shadow deployment: compare a new version with the serving one, on recent images, before it takes over.",
    )
    grace_s: float = setting(20.0, "Time to finish requests after SIGTERM.", click.FloatRange(0, 10**6))
    log_level: str = setting(
        "info",
        "Minimum level to log, as JSON lines on standard error.",
        click.Choice(["debug", "info", "warning", "error"]),
    )
    access_log_sample: float = setting(0.0, "Share of calls that are logged.", SHARE)

    @property
    def cpus(self) -> int:
        """CPUs that one worker may keep busy."""
        return max(1, available_cpus() // self.workers)

    @property
    def is_local(self) -> bool:
        """Whether `host` is reached from this machine only."""
        try:
            return self.host.startswith("unix:") or ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's own variables name a collector of traces, and do not forbid to send any."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    is_off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return any(map(environment.get, names)) and not is_off
