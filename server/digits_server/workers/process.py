"""One worker process as its supervisor sees it, the pipe between both, and what they say to each other."""

from __future__ import annotations

import enum
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from digits_server.config import Config, SettingRefused
from digits_server.logs import Ready
from digits_server.metrics.aggregate import Samples

log = logging.getLogger(__name__)

PIPE = "_DIGITS_WORKER_PIPE"
"""Environment variable that tells a worker the descriptor of its end of the pipe."""


class Command(enum.Enum):
    """What a supervisor says, after a `Config`."""

    DRAIN = enum.auto()
    RELOAD = enum.auto()
    REPORT = enum.auto()


@dataclass(frozen=True)
class Report:
    """The worker's event loop turns, and this is what it has measured."""

    samples: Samples
    was_asked: bool = False


@dataclass(frozen=True)
class Draining:
    """The worker takes no new calls; another should take its place."""


@dataclass(frozen=True)
class Ended:
    """The worker's process is gone: nobody else has the other end of the pipe."""


Message = Ready | Report | Draining | SettingRefused | Ended


def start() -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a worker process; return it and our end of its pipe.

    A plain command that inherits a descriptor, and not a `multiprocessing.Process`: so Python may as well be embedded
    in what is started.

    Raises:
        OSError: No process, or no descriptor, is to be had.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "digits_server.workers"],
                pass_fds=[theirs.fileno()],
                env=os.environ | {PIPE: str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor only
            )
        except OSError:
            ours.close()
            raise
    return process, Connection(ours.detach())


class Worker:
    """One worker process, from its start to its end.

    Args:
        index: Its number among the workers.
        config: Its settings.
        on_message: Called with what it says, on a thread; last with `Ended`.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self, index: int, config: Config, on_message: Callable[[Worker, Message], None]) -> None:
        self.index = index
        self.ready: Ready | None = None
        """What it said when it began to serve."""
        self.ready_at = 0.0
        """When, on the monotonic clock."""
        self.is_leaving = False
        """Whether another should take its place, or has."""
        self.refusal: SettingRefused | None = None
        """Why it can't serve."""
        self.missed = 0
        """Ticks of the supervisor since its last report."""
        self._on_message = on_message
        self._lock = threading.Lock()
        self._process, self._connection = start()
        self.pid = self._process.pid
        self.send(config)
        try:
            threading.Thread(target=self._read, name=f"worker-{index}", daemon=True).start()
        except RuntimeError as error:  # no thread is to be had
            self.close()
            raise OSError(errno.EAGAIN, str(error)) from error

    @property
    def serves(self) -> bool:
        """Whether it takes calls."""
        return self.ready is not None and not self.is_leaving

    @property
    def served_s(self) -> float:
        """How long it has served, or did."""
        return time.monotonic() - self.ready_at if self.ready else 0.0

    def send(self, message: Config | Command) -> None:
        """Tell it something, if it is still there. May be called on any thread."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            log.debug("worker is gone", extra={"worker_pid": self.pid})

    def _read(self) -> None:
        try:
            while True:
                self._on_message(self, self._connection.recv())
        except (EOFError, OSError):
            self._on_message(self, Ended())

    def kill(self) -> int:
        """End it at once, unless it has ended; return its exit status."""
        self._process.kill()
        return self._process.wait()

    def close(self) -> int:
        """Clear up after its end; return its exit status."""
        status = self.kill()  # should it have closed its end of the pipe and live
        self._connection.close()
        return status
