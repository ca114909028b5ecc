"""Lets a new version answer a copy of live batches before it may take over, off their callers' path, and compares."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np

from digits.v1 import classifier_pb2 as pb
from digits_server.config import Config
from digits_server.inference.engine import Engine, Images
from digits_server.models.package import Key, Package, Signature
from digits_server.models.registry import Note, Registry
from digits_server.models.trial import Totals, Trial, Verdict

log = logging.getLogger(__name__)

REPORT_S = 0.25
"""Time between reports of a trial."""
SHARE = 0.1
"""Of one CPU's time, how much comparing may take; batches that come meanwhile are not copied."""


class Shadow:
    """A new version on trial. Lives on the event loop.

    Args:
        trial: What it is called.
        package: The new version.
        on_compared: Called with what it has shown so far.
        report: Given at times what it has shown since the last report.
    """

    def __init__(
        self,
        trial: Trial,
        package: Package,
        *,
        on_compared: Callable[[Totals], None],
        report: Callable[[Trial, Totals], None],
    ) -> None:
        self.trial, self.package = trial, package
        self._on_compared, self._report = on_compared, report
        self._totals = self._unreported = Totals()
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._is_busy = self._is_closed = False
        on_compared(self._totals)
        report(trial, self._totals)  # others who load it must know that it is on trial

    def offer(self, live: Package, images: Sequence[Images]) -> None:
        """Compare on a batch that `live` has answered, or let it pass if there is no time."""
        if not self._is_busy:
            self._is_busy = True
            comparing = self._loop.run_in_executor(self._executor, compare, live.engine, self.package.engine, images)
            comparing.add_done_callback(self._compared)

    def _compared(self, done: asyncio.Future[Totals]) -> None:
        totals = done.result()
        if self._is_closed:
            return
        self._loop.call_later((totals.live_s + totals.shadow_s) * (1 / SHARE - 1), self._rested)
        if self._unreported == Totals():
            self._loop.call_later(REPORT_S, self._report_new)
        self._unreported += totals
        self._totals += totals
        self._on_compared(self._totals)

    def _rested(self) -> None:
        self._is_busy = False

    def _report_new(self) -> None:
        if not self._is_closed:
            new, self._unreported = self._unreported, Totals()
            self._report(self.trial, new)

    def close(self) -> None:
        """Compare and report no more."""
        self._is_closed = True
        self._executor.shutdown(wait=False)


class Trials:
    """Decides whether a new version serves at once, and tries it if not: at most one of each model at a time.

    Args:
        registry: What is served; told how far each trial is.
        config: Whether there are trials, and how many images a version is judged by; None: there are none.
        report: Given at times what a version has shown since the last report.
        verdicts: Trials that others know of already; None: not decided.
    """

    def __init__(
        self,
        registry: Registry,
        config: Config | None = None,
        *,
        report: Callable[[Trial, Totals], None] = lambda _trial, _totals: None,
        verdicts: Mapping[Trial, Verdict | None] = MappingProxyType({}),
    ) -> None:
        self._registry = registry
        self._config = config or Config()
        self._report = report
        self._verdicts = dict(verdicts)
        self._shadows: dict[str, Shadow] = {}
        self._loop = asyncio.get_running_loop()

    def take(self, package: Package, files: Signature, *, is_first: bool) -> None:
        """Serve a verified package, or try it before.

        Args:
            package: The package.
            files: The state of its files: others are another trial.
            is_first: Nothing served before: only what others have tried or try is held back.
        """
        key, live = package.key, self._registry.latest(package.name)
        trial = Trial(*key, files)
        has_a_say = self._config.shadow and (trial in self._verdicts or not is_first)
        if live is None or key < live.key or not has_a_say:
            self._registry.serve(package)
        elif package.labels != live.labels:
            self._registry.refuse(key, f"labels {package.labels} can't be compared to those that serve, {live.labels}")
        elif verdict := self._verdicts.get(trial):
            self._obey(verdict, package)
        else:
            self._begin(trial, package)

    def _begin(self, trial: Trial, package: Package) -> None:
        """Try a version. One that is on trial gives way to it."""
        if other := self._shadows.get(trial.name):
            self.end(other.package.key)
            self._registry.refuse(other.package.key, f"version {trial.version} came before it was judged")

        def note(totals: Totals) -> None:
            reason = f"{totals}; {self._config.shadow_images} are needed"
            self._registry.notes[package.key] = Note(pb.MODEL_STATE_SHADOW, reason)

        self._shadows[trial.name] = Shadow(trial, package, on_compared=note, report=self._report)
        log.info("model on trial", extra={"model": trial.name, "version": str(trial.version)})

    def conclude(self, trial: Trial, verdict: Verdict) -> bool:
        """Promote or refuse a version, and return whether it was on trial here; if not, remember for when it comes."""
        self._verdicts[trial] = verdict
        shadow = self._shadows.get(trial.name)
        if shadow is None or shadow.trial != trial:
            return False
        self.end(shadow.package.key)
        self._obey(verdict, shadow.package)
        return True

    def _obey(self, verdict: Verdict, package: Package) -> None:
        key = package.key
        about = {"model": key.name, "version": str(key.version), "promoted": verdict.is_promoted, "why": verdict.reason}
        log.info("trial over", extra=about)
        if verdict.is_promoted:
            self._registry.serve(package)
        else:
            self._registry.refuse(key, f"on trial it {verdict.reason}")

    def end(self, key: Key) -> None:
        """Try a version no more, if it is on trial."""
        shadow = self._shadows.get(key.name)
        if shadow and shadow.package.key == key:
            self._shadows.pop(key.name).close()

    def has(self, name: str) -> bool:
        """Whether a version of a model is on trial."""
        return name in self._shadows

    def offer(self, live: Package, images: Sequence[Images]) -> None:
        """Let the version on trial, if there is one, compare on a batch that was answered; called on any thread."""
        if live.name in self._shadows:
            self._loop.call_soon_threadsafe(self._offer, live, images)

    def _offer(self, live: Package, images: Sequence[Images]) -> None:
        shadow = self._shadows.get(live.name)  # its trial may have ended meanwhile
        if shadow and self._registry.latest(live.name) is live:
            shadow.offer(live, images)


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
