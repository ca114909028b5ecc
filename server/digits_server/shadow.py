"""Lets a new version answer a copy of live batches, off their callers' path, and compares."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np

from digits.v1 import classifier_pb2 as pb
from digits_server.engine import Engine, Images
from digits_server.packages import Key, Package
from digits_server.registry import Note, Registry
from digits_server.trial import Totals, Trial, Verdict

log = logging.getLogger(__name__)

REPORT_S = 0.25
"""Time between reports of a trial."""
SHARE = 0.1
"""Of one CPU's time, how much comparing may take; batches that come meanwhile are not copied."""


class Shadow:
    """A new version on trial. Lives on the event loop; only `offer` may be called on other threads.

    Args:
        package: The new version.
        on_compared: Called on the event loop with what one copied batch has shown.
    """

    def __init__(self, package: Package, on_compared: Callable[[Totals], None]) -> None:
        self.package = package
        self._on_compared = on_compared
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._is_busy = False

    def offer(self, live: Package, images: Sequence[Images]) -> None:
        """Compare on a batch that `live` has answered, or let it pass if there is no time."""
        if not self._is_busy:
            self._is_busy = True
            self._executor.submit(compare, live.engine, self.package.engine, images).add_done_callback(self._compared)

    def _compared(self, done: Future[Totals]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish, done.result())

    def _finish(self, totals: Totals) -> None:
        self._loop.call_later((totals.live_s + totals.shadow_s) * (1 / SHARE - 1), self._rested)
        self._on_compared(totals)

    def _rested(self) -> None:
        self._is_busy = False

    def close(self) -> None:
        """Compare no more."""
        self._is_busy = True
        self._executor.shutdown(wait=False)


class Trials:
    """The new versions on trial, at most one of each model.

    Args:
        registry: Told how far each trial is.
        images: How many a version is judged by.
        report: Given at times what a version has shown since the last report.
        verdicts: Trials that others know of already; None: not decided.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        images: int,
        report: Callable[[Trial, Totals], None],
        verdicts: Mapping[Trial, Verdict | None],
    ) -> None:
        self._registry = registry
        self._images = images
        self._report = report
        self.verdicts = dict(verdicts)
        self._shadows: dict[str, tuple[Trial, Shadow]] = {}
        self._totals: dict[Trial, Totals] = {}
        self._reported: dict[Trial, Totals] = {}

    def begin(self, trial: Trial, package: Package) -> None:
        """Try a verified version of a served model. One that is on trial gives way to it."""
        if trial.name in self._shadows:
            other = self._shadows[trial.name][1].package.key
            self.end(other)
            self._registry.refuse(other, f"version {trial.version} came before it was judged")
        self._totals[trial] = self._reported[trial] = Totals()
        self._shadows[trial.name] = trial, Shadow(package, partial(self._compared, trial))
        self._report(trial, Totals())  # others who load it must know that it is on trial
        self._note(trial)
        log.info("model on trial", extra={"model": trial.name, "version": str(trial.version)})

    def end(self, key: Key) -> Package | None:
        """Try a version no more, if it is on trial, and return it."""
        trial, shadow = self._shadows.get(key.name, (None, None))
        if trial is None or shadow is None or shadow.package.key != key:
            return None
        shadow.close()
        del self._shadows[key.name], self._totals[trial], self._reported[trial]
        return shadow.package

    def has(self, name: str) -> bool:
        """Whether a version of a model is on trial."""
        return name in self._shadows

    def offer(self, live: Package, images: Sequence[Images]) -> None:
        """Let the version on trial, if there is one, compare on a batch that the latest version has answered."""
        if live.name in self._shadows and self._registry.latest(live.name) is live:
            self._shadows[live.name][1].offer(live, images)

    def _compared(self, trial: Trial, totals: Totals) -> None:
        if trial not in self._totals:  # it has ended meanwhile
            return
        if self._totals[trial] == self._reported[trial]:
            asyncio.get_running_loop().call_later(REPORT_S, self._report_new, trial)
        self._totals[trial] += totals
        self._note(trial)

    def _report_new(self, trial: Trial) -> None:
        if trial in self._totals:
            new = self._totals[trial] - self._reported[trial]
            self._reported[trial] = self._totals[trial]
            self._report(trial, new)

    def _note(self, trial: Trial) -> None:
        reason = f"{self._totals[trial]}; {self._images} are needed"
        self._registry.notes[Key(trial.name, trial.version)] = Note(pb.MODEL_STATE_SHADOW, reason)


def compare(live: Engine, new: Engine, images: Sequence[Images]) -> Totals:
    """Return what one batch shows.

    Both run here, one after the other, and are timed by this thread's CPU time: then neither the callers' work nor
    waiting for the interpreter counts. With several threads a run, that is the calling thread's share of it.
    """
    start = time.thread_time()
    expected = live.predict(images)
    middle = time.thread_time()
    try:
        answers = new.predict(images)
        variation = np.abs(answers.probabilities - expected.probabilities).sum(axis=1) / 2
        agreed = int((answers.digits == expected.digits).sum())
    except Exception:  # what a model raises on some images speaks against it
        log.exception("a new version failed on live images")
        return Totals(len(expected), 0, float(len(expected)), middle - start, time.thread_time() - middle)
    end = time.thread_time()
    return Totals(len(expected), agreed, float(np.nan_to_num(variation, nan=1.0).sum()), middle - start, end - middle)
