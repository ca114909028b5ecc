"""A worker as its supervisor sees it: a process, a channel, a board."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from digits_server.config import Config, SettingRefused
from digits_server.metrics.board import Board, Key, share
from digits_server.metrics.http import Ready

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Time between two looks at a worker's heart."""
HUNG_LOOKS = 10
"""Looks in a row that saw no beat, after which a worker is hung. Looks are counted, not seconds: who was stopped
together with the whole machine is not hung."""
START_LOOKS = 240
"""The same until the first beat: models are loaded before it."""


class Child:
    """One worker process, from its start to its end. Lives on one event loop.

    Args:
        place: Its number among the workers.
        config: Its settings.
        on_ready: Called when it serves.
    """

    def __init__(
        self,
        place: int,
        config: Config,
        *,
        on_ready: Callable[[], None],
    ) -> None:
        self.place = place
        self.ready: Ready | None = None
        """What it said when it began to serve."""
        self.refusal: SettingRefused | None = None
        """Why it can't serve."""
        loop = asyncio.get_running_loop()
        self.left: asyncio.Future[str] = loop.create_future()
        """Done when another worker should take its place, with the reason: `asked`, `died` or `hung`."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Done when its process is gone, with the exit status."""
        self._on_ready = on_ready
        self._ready_at = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="digits-")  # it may be killed: we clear up
        ours, theirs = socket.socketpair()
        with theirs, share() as memory:
            self.board = Board(memory.fileno())
            inherited = theirs.fileno(), memory.fileno()
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "digits_server.workers.worker", *map(str, inherited)],
                pass_fds=inherited,
                env=os.environ | {"TMPDIR": self._folder.name},
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor only
            )
        self.pid = self._process.pid
        self._channel = Connection(ours.detach())
        self.tell(config)
        loop.add_reader(self._channel.fileno(), self._read)
        self._seen, self._missed = 0.0, 0
        self._looking = loop.call_later(LOOK_S, self._look)

    @property
    def served_s(self) -> float:
        """How long it has served, or did."""
        return time.monotonic() - self._ready_at if self.ready else 0.0

    @property
    def is_hung(self) -> bool:
        """Whether its event loop has stood still for too long."""
        return self._missed >= (HUNG_LOOKS if self._seen else START_LOOKS)

    def tell(self, *message: object) -> None:
        """Send it a message, if it is still there: a command and what belongs to it."""
        try:
            self._channel.send(message)
        except OSError:
            log.debug("worker is gone", extra={"worker_pid": self.pid})

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _look(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        beat = self.board.last_beat
        self._missed = 0 if beat != self._seen else self._missed + 1
        self._seen = beat
        if self.is_hung:
            log.error("worker hangs", extra={"worker": self.place, "worker_pid": self.pid})
            self._leave("hung")
            self.kill()

    def _read(self) -> None:
        try:
            while self._channel.poll():
                kind, content = self._channel.recv()
                self._hear(kind, content)
        except (EOFError, OSError):  # it is dead: nobody else has the other end
            self._end()

    def _hear(self, kind: str, content: object) -> None:
        match kind, content:
            case "key", Key():
                self.board.keys.append(content)
            case "ready", Ready():
                self.ready, self._ready_at = content, time.monotonic()
                self._on_ready()
            case "refused", SettingRefused():
                self.refusal = content
            case "draining", None:
                self._leave("asked")

    def _leave(self, reason: str) -> None:
        if not self.left.done():
            self.left.set_result(reason)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._looking.cancel()
        self._channel.close()
        self._process.kill()  # should it have closed its end and live
        status = self._process.wait()
        self._folder.cleanup()
        self.ended.set_result(status)
        self._leave("died")
