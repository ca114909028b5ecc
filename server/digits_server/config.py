"""What can be set, with the defaults. Parsing and help texts are the command line's business."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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


@dataclass(frozen=True)
class Config:
    """Settings of one server; each is a flag and an environment variable of `digits-server`."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 50051
    """Port of the gRPC services; 0 takes a free one."""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics and probe pages."""
    metrics_port: int = 9464
    """Port of the metrics and probe pages; 0 takes a free one."""
    models: Path = Path("models")
    """Folder of model packages: `<name>/<version>/model.onnx`."""
    workers: int = 1
    """Processes that share the port; more than one are looked after by a supervisor."""
    transport: str = "auto"
    """What carries RPCs: `grpcio`, `native`, or `auto`."""
    default_model: str = "digits-mlp"
    """Model that answers requests that name none."""
    max_batch_size: int | None = None
    """Most images run at once; None: measured for each model."""
    max_wait_s: float = 0.0
    """How long a first image may wait for company; 0 lets a lone request run at once."""
    max_queue: int = 4096
    """Most images waiting for one model."""
    max_rows: int = 4096
    """Most images of one request."""
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest request or answer."""
    max_metadata_bytes: int = 16 * 1024
    """Most metadata of a call."""
    max_streams: int = 1024
    """Most calls at once on one connection."""
    max_connections: int | None = None
    """Most connections at once; None: what the transport takes, see transport.py."""
    max_connection_age_s: float | None = None
    """How long a connection lasts before its client is sent to connect anew; None: as the transport does."""
    max_idle_s: float | None = None
    """How long a connection may be without calls; None: as long as it likes."""
    min_ping_interval_s: float | None = None
    """How often a client may ping; None: as the transport does."""
    channelz: bool = False
    """Whether to tell operators about connections, in `grpc.channelz.v1.Channelz`."""
    tls_cert: Path | None = None
    """Certificate chain, PEM; None: plain text."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    tls_client_ca: Path | None = None
    """Authorities whose certificates clients must show, PEM; None: clients need none."""
    token_file: Path | None = None
    """Who may call what, TOML; None: everybody everything."""
    allow_plain_tokens: bool = False
    """Whether tokens may travel unencrypted from other machines."""
    inference_threads: int = 1
    """Threads of one onnxruntime session."""
    reload_s: float = 1.0
    """Time between looks at the models folder; 0: only at SIGHUP."""
    strict_readiness: bool = False
    """Whether any refused package keeps a server that starts from becoming ready."""
    shadow: bool = False
    """Whether a new version first answers a copy of live requests, and must show that it may take over."""
    shadow_images: int = 1000
    """Images that it is judged by."""
    shadow_agreement: float = 0.98
    """Least share of them for which it must give the digit that the version before it gives."""
    shadow_cost: float = 1.5
    """Most CPU time it may take, over that of the version before it."""
    grace_s: float = 20.0
    """How long requests in flight may take to finish after SIGTERM."""
    log_level: str = "info"
    """Least severe level that is logged."""
    access_log_sample: float = 0.0
    """Share of the RPCs that are logged."""

    @property
    def cpus(self) -> int:
        """CPUs that one worker may keep busy."""
        return max(1, available_cpus() // self.workers)

    @property
    def is_local(self) -> bool:
        """Whether `host` is reached from this machine only."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's own variables name a collector of traces, and do not forbid to send any."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    is_off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return any(map(environment.get, names)) and not is_off


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
