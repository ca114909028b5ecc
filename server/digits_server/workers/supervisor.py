"""Several workers on one port: starts them, replaces those that die or hang, drains them. Serves no RPC itself.

Imports nothing that serves: a supervisor takes a fraction of a worker's memory, and little that could fail.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from digits_server.addresses import Address, reserved
from digits_server.config import Config, SettingRefused
from digits_server.logs import Ready, announce
from digits_server.metrics.aggregate import Aggregate, Page
from digits_server.metrics.http import AdminServer
from digits_server.workers.process import Command, Draining, Ended, Message, Report, Worker

log = logging.getLogger(__name__)

TICK_S = 0.5
"""Time between two looks at the workers."""
HUNG_TICKS = 10
"""Looks in a row without a report from a worker that serves, after which it is hung. Looks are counted, not seconds:
who was stopped together with the whole machine is not hung."""
START_TICKS = 240
"""The same before it serves: models are loaded then."""
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


@dataclass
class Slot:
    """A place for one worker after the other."""

    index: int
    worker: Worker | None = None
    failures: int = 0
    """Workers in a row that were no good."""
    start_at: float = 0.0
    """When the next may be started, on the monotonic clock."""


def supervise(config: Config) -> int:
    """Serve with several workers until a signal ends it; return the exit status.

    It is 0 after a drain, 1 if that was cut short or if workers die again and again.

    Raises:
        SettingRefused: A setting can't work here, such as a port that is in use.
    """
    supervisor = Supervisor(config)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, supervisor.handle_signal)
    try:
        return supervisor.run()
    except GaveUp as error:
        log.critical("gave up", extra={"reason": str(error)})
        return 1


class Supervisor:
    """Keeps `config.workers` processes serving. One loop; threads and signal handlers only put into its inbox.

    Args:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._inbox: queue.SimpleQueue[tuple[Worker, Message] | signal.Signals] = queue.SimpleQueue()
        self._slots = [Slot(index) for index in range(config.workers)]
        self._workers: list[Worker] = []  # all that live, those included that drain while others have their places
        self._stops = 0  # signals to stop so far
        self._next_tick = 0.0
        self._is_announced = self._has_failed = False
        self._measured = Aggregate(self._ask_for_reports)
        self._page = Page(
            self._measured,
            workers_ready=lambda: sum(worker.serves for worker in self._workers.copy()),
            processes=lambda: (
                {"supervisor": os.getpid()} | {str(worker.index): worker.pid for worker in self._workers.copy()}
            ),
        )

    def handle_signal(self, number: int, _frame: object) -> None:
        """Let the loop see to a signal."""
        self._inbox.put(signal.Signals(number))

    def _receive(self, worker: Worker, message: Message) -> None:
        self._inbox.put((worker, message))

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain; return the exit status.

        Raises:
            SettingRefused: A setting can't work here, such as a port that is in use.
            GaveUp: Workers die as soon as they are started.
        """
        address = Address(self._config.host, self._config.port)
        if address.path is not None and self._config.workers > 1:
            raise SettingRefused("--workers", f"{self._config.workers} can't share {address}; allowed is 1")
        with (
            reserved(address, shared=True) as address,
            AdminServer(
                self._config, self._page.registry, is_alive=self._is_alive, is_ready=self._is_ready
            ) as self._admin,
        ):
            self._config = replace(self._config, port=address.port, metrics_port=self._admin.port)
            try:
                while not self._stops:
                    self._fill_slots()
                    self._handle_next()
                return self._drain()
            finally:
                for worker in self._workers:
                    worker.kill()
                if address.path is not None:
                    Path(address.path).unlink(missing_ok=True)

    def _is_alive(self) -> bool:
        workers = self._workers.copy()
        return not workers or any(worker.missed < _patience(worker) for worker in workers)

    def _is_ready(self) -> bool:
        return self._is_announced and not self._stops and any(worker.serves for worker in self._workers.copy())

    def _fill_slots(self) -> None:
        for slot in self._slots:
            if slot.worker is None and time.monotonic() >= slot.start_at:
                try:
                    slot.worker = Worker(slot.index, self._config, self._receive)
                except OSError:  # no process, no memory
                    log.exception("worker not started", extra={"worker": slot.index})
                    self._vacate(slot, "not_started", is_good=False)
                else:
                    self._workers.append(slot.worker)

    def _handle_next(self) -> None:
        """See to one message or signal, and to the time."""
        with contextlib.suppress(queue.Empty):
            match self._inbox.get(timeout=TICK_S):
                case signal.SIGHUP:
                    self._tell_all(Command.RELOAD)
                case signal.Signals():
                    self._stops += 1
                case worker, message:
                    self._handle(worker, message)
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK_S
            for worker in self._workers:
                worker.missed += 1
                if worker.missed == _patience(worker):
                    log.error("worker hangs", extra={"worker": worker.index, "worker_pid": worker.pid})
                    self._replace(worker, "hung")
                    worker.kill()

    def _handle(self, worker: Worker, message: Message) -> None:
        match message:
            case Report():
                worker.missed = 0
                self._measured.update(worker.pid, message.samples, was_asked=message.was_asked)
            case Ready():
                worker.ready, worker.ready_at = message, time.monotonic()
                self._announce()
            case Draining():
                self._replace(worker, "asked")
            case SettingRefused():
                worker.refusal = message
            case Ended():
                self._workers.remove(worker)
                self._measured.retire(worker.pid)
                self._has_failed |= bool(worker.close())
                self._replace(worker, "died")

    def _replace(self, worker: Worker, reason: str) -> None:
        """Let another take a worker's place, unless one has."""
        slot = self._slots[worker.index]
        worker.is_leaving = True
        if slot.worker is worker and not self._stops:
            if worker.refusal and not self._is_announced:
                raise worker.refusal
            is_good = reason == "asked" or worker.served_s > SERVED_S
            self._vacate(slot, reason, is_good=is_good, refusal=worker.refusal)

    def _vacate(self, slot: Slot, reason: str, *, is_good: bool, refusal: SettingRefused | None = None) -> None:
        """Make way for the next worker, now or after a pause.

        Raises:
            GaveUp: There have been too many.
        """
        slot.worker = None
        slot.failures = failures = 0 if is_good else slot.failures + 1
        pause_s = min(BACK_OFF_S * 2 ** (failures - 2), MAX_BACK_OFF_S) if failures > 1 else 0.0
        slot.start_at = time.monotonic() + pause_s
        self._page.restarts.labels(reason).inc()
        about = {"worker": slot.index, "reason": reason, "pause_s": pause_s, "refusal": refusal and str(refusal)}
        log.log(logging.WARNING if failures else logging.INFO, "worker replaced", extra=about)
        if failures >= TRIES and not self._is_ready():
            raise GaveUp(f"{failures} workers in a row served less than {SERVED_S:g} s; the last one {reason}")

    def _announce(self) -> None:
        ready = [slot.worker.ready for slot in self._slots if slot.worker and slot.worker.ready]
        if not self._is_announced and len(ready) == len(self._slots):
            self._is_announced = True
            pids = [os.getpid(), *(worker.pid for worker in self._workers)]
            announce(self._config, ready[0], self._admin.address, pids)

    def _ask_for_reports(self) -> list[int]:
        serving = [worker for worker in self._workers.copy() if worker.ready]
        for worker in serving:
            worker.send(Command.REPORT)
        return [worker.pid for worker in serving]

    def _tell_all(self, command: Command) -> None:
        for worker in self._workers:
            worker.send(command)

    def _drain(self) -> int:
        log.info("draining", extra={"workers": len(self._workers), "grace_s": self._config.grace_s})
        self._tell_all(Command.DRAIN)
        self._has_failed = False
        end = time.monotonic() + self._config.grace_s + DRAIN_S
        while self._workers and self._stops == 1 and time.monotonic() < end:
            self._handle_next()
        if self._workers:
            log.error("ended before the drain was over", extra={"worker_pids": [w.pid for w in self._workers]})
            return 1
        log.info("drained")
        return int(self._has_failed)


def _patience(worker: Worker) -> int:
    return HUNG_TICKS if worker.ready else START_TICKS
