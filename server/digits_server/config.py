"""What can be set, with the defaults. Parsing and help texts are the command line's business."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


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
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest request or answer."""
    inference_threads: int = 1
    """Threads of one onnxruntime session."""
    grace_s: float = 20.0
    """How long requests in flight may take to finish after SIGTERM."""
    log_level: str = "info"
    """Least severe level that is logged."""


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
