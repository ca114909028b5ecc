"""What the command writes: log lines as JSON on standard error, and one line for people on standard output."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pythonjsonlogger.json import JsonFormatter

from digits_server.addresses import Address
from digits_server.config import Config, available_cpus

log = logging.getLogger(__name__)


def open_standard_files() -> None:
    """Open those of the standard files that are closed, on nothing; else sockets would get their numbers."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)  # noqa: FBT003 - or those of workers would be closed
    os.close(opened)


def to_stderr(level: str) -> None:
    """Let all loggers write there what is at least as severe as `level`."""
    handler = logging.StreamHandler(sys.stderr or open(os.devnull, "w"))  # noqa: PTH123, SIM115 - as long as we live
    handler.setFormatter(
        JsonFormatter(
            ["asctime", "levelname", "name", "process", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"},
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])


@dataclass(frozen=True)
class Ready:
    """What a process that serves says about itself."""

    port: int
    transport: str
    models: tuple[str, ...]
    """Each as `<name>/<version>`."""
    default_model: str


def announce(config: Config, ready: Ready, admin: str, pids: Sequence[int]) -> None:
    """Print the one line that says where everything is, for people and for those who wait for it; nobody need read it.

    Args:
        config: The settings.
        ready: What those who serve say.
        admin: Host and port of the admin endpoints.
        pids: All processes.
    """
    line = (
        f"digits-server ready: gRPC {Address(config.host, ready.port)} ({ready.transport}), "
        f"metrics http://{admin}/metrics, models {', '.join(ready.models)} (default {ready.default_model}), "
        f"{config.workers} worker(s) of {config.inference_threads} inference thread(s) on {available_cpus()} CPU(s), "
        f"pid {', '.join(map(str, pids))}"
    )
    try:
        print(line, flush=True)  # noqa: T201 - everything else is logged
    except OSError as error:  # the disk is full, or the reader gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the same would happen again at the end
        log.warning("standard output can't be written", extra={"reason": error.strerror, "line": line})
