"""Several workers on one port: starts them, replaces those that die or hang, drains them. Serves no RPC itself.

Imports nothing that serves: a supervisor takes a fraction of a worker's memory, and little that could fail.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import replace
from typing import Any

from digits_server.config import Config, SettingRefused
from digits_server.metrics import definitions as families
from digits_server.metrics import recorder as metrics
from digits_server.metrics.board import Board
from digits_server.metrics.boards import Boards
from digits_server.metrics.http import Pages
from digits_server.models.trial import Judge, Totals, Trial
from digits_server.rpc.addresses import Address, reserved
from digits_server.workers.process import Child

log = logging.getLogger(__name__)

SERVED_S = 30.0
"""A worker that has served so long was a good one."""
TRIES = 5
"""Workers in a row that were not, after which there is no hope, unless others still serve."""
BACK_OFF_S = 0.5
"""Pause before the second replacement in a row; it doubles with each. There is none before the first."""
MAX_BACK_OFF_S = 30.0
DRAIN_S = 5.0
"""Time beyond the grace in which workers end by themselves."""


class GaveUp(Exception):
    """Raise when nobody serves, and new workers die too, again and again."""


def supervise(config: Config) -> int:
    """Serve with several workers until a signal ends it; return the exit status.

    Raises:
        SettingRefused: A setting can't work here, such as a port that is in use.
    """
    try:
        return asyncio.run(Supervisor(config).run())
    except GaveUp as error:
        log.critical("gave up", extra={"reason": str(error)})
        return 1


class Supervisor:
    """Keeps `config.workers` processes serving.

    Args:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop, self._end_now = asyncio.Event(), asyncio.Event()
        self._children: dict[int, Child] = {}  # by pid; one place may have two, of which one drains
        self._announced = False
        self._judge = Judge(config)
        self._boards, self._board = Boards(), Board()
        self._boards.add(self._board)
        for reason in ("asked", "died", "hung", "not_started"):  # from 0 on: Prometheus sees no first step otherwise
            self._board.cell(families.RESTARTS, reason)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain; return the exit status.

        Raises:
            SettingRefused: A setting can't work here, such as a port that is in use.
            GaveUp: Workers die as soon as they are started.
        """
        loop = asyncio.get_running_loop()  # its end is that of the handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        address = Address(self._config.host, self._config.port)
        if address.path is not None and self._config.workers > 1:
            raise SettingRefused("--workers", f"{self._config.workers} can't share {address}; allowed is 1")
        with reserved(address, shared=True) as address, self._pages() as self._page:
            self._config = replace(self._config, port=address.port)
            keepers = [asyncio.create_task(self._keep(place)) for place in range(self._config.workers)]
            stop = asyncio.create_task(self._stop.wait())
            try:
                done, _ = await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a keeper comes to an end only by an error
                return await self._drain()
            finally:
                for child in self._children.values():
                    child.kill()
                for task in (stop, *keepers):
                    task.cancel()
                await asyncio.gather(
                    *(child.ended for child in self._children.values()), stop, *keepers, return_exceptions=True
                )

    def _pages(self) -> Pages:
        return Pages(
            self._config,
            metrics=metrics.page(
                self._boards,
                lambda: (
                    {"supervisor": os.getpid()}
                    | {str(child.place): pid for pid, child in self._children.copy().items()}
                ),
            ),
            is_alive=lambda: not self._children or any(not child.is_hung for child in list(self._children.values())),
            is_ready=self._is_ready,
        )

    def _is_ready(self) -> bool:
        return self._announced and any(child.board.is_ready for child in list(self._children.values()))

    def _asked_to_stop(self) -> None:
        (self._end_now if self._stop.is_set() else self._stop).set()

    def _reload(self) -> None:
        for child in self._children.values():
            child.tell("reload")

    def _hear(self, trial: Trial, totals: Totals) -> None:
        """Judge a new version by what all workers have seen of it, once for all."""
        if verdict := self._judge.hear(trial, totals):
            for child in self._children.values():
                child.tell("verdict", trial, verdict)

    async def _keep(self, place: int) -> None:
        """Keep one place filled: one worker after the other.

        Raises:
            SettingRefused, GaveUp: As `run`.
        """
        failures = 0
        while not self._stop.is_set():
            reason, good, refusal = await self._fill(place)
            if self._stop.is_set():
                return
            if refusal and not self._announced:
                raise refusal
            failures = 0 if good else failures + 1
            pause_s = min(BACK_OFF_S * 2 ** (failures - 2), MAX_BACK_OFF_S) if failures > 1 else 0.0
            self._board.count(families.RESTARTS, reason)
            about = {"worker": place, "reason": reason, "pause_s": pause_s, "refusal": refusal and str(refusal)}
            log.log(logging.WARNING if failures else logging.INFO, "worker replaced", extra=about)
            if failures >= TRIES and not self._is_ready():
                raise GaveUp(f"{failures} workers in a row served less than {SERVED_S:g} s; the last one {reason}")
            await asyncio.sleep(pause_s)

    async def _fill(self, place: int) -> tuple[str, bool, SettingRefused | None]:
        """Start a worker; return why another should take its place, whether it was a good one, and what it refused."""
        try:
            child = Child(place, self._config, self._judge.verdicts, on_ready=self._announce, on_trial=self._hear)
        except OSError:  # no process, no memory, no room for a folder
            log.exception("worker not started", extra={"worker": place})
            return "not_started", False, None
        self._children[child.pid] = child
        self._boards.add(child.board)

        def bury(_: object) -> None:
            self._boards.bury(child.board)
            del self._children[child.pid]

        child.ended.add_done_callback(bury)
        reason = await child.left
        return reason, reason == "asked" or child.served_s > SERVED_S, child.refusal

    def _announce(self) -> None:
        ready = [child.ready for child in self._children.values() if child.ready]
        if not self._announced and len(ready) == self._config.workers:
            self._announced = True
            self._page.announce(ready[0], [os.getpid(), *self._children])

    async def _drain(self) -> int:
        children = list(self._children.values())
        log.info("draining", extra={"workers": len(children), "grace_s": self._config.grace_s})
        for child in children:
            child.tell("drain")
        ended: asyncio.Future[list[int]] = asyncio.gather(*(child.ended for child in children))
        either: set[asyncio.Future[Any]] = {ended, asyncio.create_task(self._end_now.wait())}
        await asyncio.wait(either, timeout=self._config.grace_s + DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            log.error("ended before the drain was over", extra={"worker_pids": list(self._children)})
            return 1
        log.info("drained")
        return 1 if any(ended.result()) else 0
