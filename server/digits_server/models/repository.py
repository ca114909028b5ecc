"""Keeps what is served equal to what is in the models folder, while requests are answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from digits.v1 import classifier_pb2 as pb
from digits_server.errors import ModelRefused
from digits_server.models.package import Key, Signature, find, load, sign
from digits_server.models.registry import Note, Registry
from digits_server.models.shadow import Trials
from digits_server.models.trial import Trial, Verdict

log = logging.getLogger(__name__)

REST = 3.0
"""Pauses in measuring a new model while others serve, over the time of the runs: a quarter of a CPU is taken."""


class Watch:
    """Looks at a models folder again and again, loads what is new and removes what is gone. One step after the other.

    A version is loaded when its files are the same in two looks, and only counts if they still are when it has been:
    what is being copied is left alone. What was refused is tried again when its files change. If the folder can't be
    read, or is empty, everything that is served stays: volumes get unmounted by mistake.

    Args:
        root: The models folder; it is only read.
        registry: What is served.
        trials: Serves what is new, or tries it before.
        threads: Threads of one run of a model.
        every_s: Time between looks; 0: only when told.
        on_change: Awaited after each change of the registry, or of `is_readable`.
    """

    def __init__(
        self,
        root: Path,
        registry: Registry,
        trials: Trials,
        *,
        threads: int,
        every_s: float,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._root = root
        self._registry = registry
        self._trials = trials
        self._threads = threads
        self._every_s = every_s
        self._on_change = on_change
        self._orders: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._is_first = True
        self._seen: dict[Key, Signature] = {}  # in the last look
        self._done: dict[Key, Signature] = {}  # loaded or refused; empty: gone, but still served
        self.is_readable = True
        """Whether the last look succeeded."""

    def look_now(self) -> None:
        """Look at once, and take it as said that nothing is being copied."""
        self._orders.put_nowait(partial(self.look, is_told=True))

    def decide(self, trial: Trial, verdict: Verdict) -> None:
        """Promote or refuse a version on trial, as soon as the look that is under way is over."""
        self._orders.put_nowait(partial(self._conclude, trial, verdict))

    async def run(self) -> None:
        """Look, and do what is ordered, for ever."""
        while True:
            order: Callable[[], Awaitable[None]] = partial(self.look, is_told=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s or None):
                    order = await self._orders.get()
            try:
                await order()
            except Exception:  # whatever it is, the next look may do better; callers must not feel it
                log.exception("looking at the models failed")

    async def look(self, *, is_told: bool) -> None:
        """Look once, and see to what has changed.

        Args:
            is_told: Somebody says that the folder is complete; else only what was there in the last look counts.
        """
        try:
            found = await asyncio.to_thread(find, self._root, self._registry.names)
            if self._registry.names and not found:
                raise FileNotFoundError(f"{self._root} holds no models any more")
        except OSError as error:
            await self._readable(error)
            return
        await self._readable(None)
        before, self._seen = self._seen, found
        for key in sorted(found):  # the older first: a newer one may have to be compared to it
            signature = found[key]
            if signature != self._done.get(key) and (is_told or signature == before.get(key)):
                await self._load(key, signature)
        # Only now: what takes the place of a version should be there before it goes.
        for key in [key for key in self._done if key not in found and (is_told or key not in before)]:
            await self._remove(key)
        self._is_first = False

    async def _readable(self, error: OSError | None) -> None:
        if self.is_readable != (error is None):
            self.is_readable = error is None
            if error:
                log.error("models can't be read; those that are loaded serve on", extra={"reason": str(error)})
            else:
                log.info("models can be read again")
            await self._on_change()

    async def _load(self, key: Key, signature: Signature) -> None:
        self._trials.end(key)
        self._registry.notes[key] = Note(pb.MODEL_STATE_LOADING)
        fault, package = "", None
        try:
            package = await asyncio.to_thread(
                load, self._root, key, threads=self._threads, rest=0.0 if self._is_first else REST
            )
        except ModelRefused as error:
            fault = str(error)
        if await asyncio.to_thread(sign, key.folder(self._root)) != signature:  # somebody wrote meanwhile
            del self._registry.notes[key]
            return
        self._done[key] = signature
        if package:
            self._trials.take(package, signature, is_first=self._is_first)
        else:
            self._registry.refuse(key, fault)
        await self._on_change()

    async def _conclude(self, trial: Trial, verdict: Verdict) -> None:
        if self._trials.conclude(trial, verdict):
            await self._on_change()

    async def _remove(self, key: Key) -> None:
        self._trials.end(key)
        if self._registry.remove(key, keep_last=self._trials.has(key.name)):
            del self._done[key]
            await self._on_change()
        elif self._done[key]:
            self._done[key] = ()
            log.error("last version of a model that is needed is gone; it serves on", extra={"model": key.name})
