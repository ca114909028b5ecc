"""Keeps what is served equal to what is in the models folder, while requests are answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from digits.v1 import classifier_pb2 as pb
from digits_server.errors import ModelRefused
from digits_server.models.canary import compare
from digits_server.models.package import Contents, Fingerprint, Key, Package, find, fingerprint, load
from digits_server.models.registry import Note, Registry, ServedModel

log = logging.getLogger(__name__)

SETTLE_S = 0.3
"""Time for which a new package must stay as it is before it is loaded: somebody may be copying it."""
REST = 3.0
"""Pauses in measuring a new model while others serve, over the time of the runs: a quarter of a CPU is taken."""


class Repository:
    """Polls a models folder, loads what is new and removes what is gone. One step after the other.

    A version is loaded when its files are the same in two polls, and only counts if they still are when it has been:
    what is being copied is left alone. What was refused is tried again when its files change. If the folder can't be
    read, or is empty, everything that is served stays: volumes get unmounted by mistake.

    Args:
        root: The models folder; it is only read.
        registry: What is served.
        threads: Threads of one run of a model.
        every_s: Time between polls; 0: only when told.
        shadow: Compare a new version with the latest one that serves, and refuse it if it shows to be worse.
        on_change: Awaited after each change of the registry, or of `is_readable`.
        rest: Pauses in measuring and comparing, over the time of the runs.
    """

    def __init__(
        self,
        root: Path,
        registry: Registry,
        *,
        threads: int,
        every_s: float,
        on_change: Callable[[], Awaitable[None]],
        shadow: bool = False,
        rest: float = REST,
    ) -> None:
        self._root = root
        self._registry = registry
        self._threads = threads
        self._every_s = every_s
        self._shadow = shadow
        self._on_change = on_change
        self._rest = rest
        self._reload = asyncio.Event()
        self._is_first = True
        self._is_quiet = True  # nothing has changed between the last two polls
        self._seen = Contents({}, {})  # in the last poll
        self._done: dict[Key, Fingerprint] = {}  # loaded or refused; empty: gone, but still served
        self.is_readable = True
        """Whether the last poll succeeded."""

    def reload(self) -> None:
        """Poll at once, and take it as said that nothing is being copied."""
        self._reload.set()

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((self._every_s if self._is_quiet else min(self._every_s, SETTLE_S)) or None):
                    await self._reload.wait()
            is_told = self._reload.is_set()
            self._reload.clear()
            try:
                await self.poll(is_told=is_told)
            except Exception:  # whatever it is, the next poll may do better; callers must not feel it
                log.exception("looking at the models failed")

    async def poll(self, *, is_told: bool) -> None:
        """Look once, and see to what has changed.

        Args:
            is_told: Somebody says that the folder is complete; else only what was there in the last poll counts.
        """
        try:
            found = await asyncio.to_thread(find, self._root, self._registry.names)
            if self._registry.names and not found.packages:
                raise FileNotFoundError(f"{self._root} holds no models any more")
        except OSError as error:
            await self._readable(error)
            return
        await self._readable(None)
        before, self._seen = self._seen, found
        misplaced = {place: why for place, why in found.misplaced.items() if is_told or place in before.misplaced}
        if misplaced != self._registry.misplaced:
            self._registry.misplace(misplaced)
            await self._on_change()
        for key in sorted(found.packages):  # the older first: a newer one may have to be compared to it
            files = found.packages[key]
            if files != self._done.get(key) and (is_told or files == before.packages.get(key)):
                await self._load(key, files)
        # Only now: what takes the place of a version should be there before it goes.
        for key in [key for key in self._done if key not in found.packages and (is_told or key not in before.packages)]:
            await self._remove(key)
        self._is_first, self._is_quiet = False, found == before

    async def _readable(self, error: OSError | None) -> None:
        if self.is_readable != (error is None):
            self.is_readable = error is None
            if error:
                log.error("models can't be read; those that are loaded serve on", extra={"reason": str(error)})
            else:
                log.info("models can be read again")
            await self._on_change()

    async def _load(self, key: Key, files: Fingerprint) -> None:
        self._registry.notes[key] = Note(pb.MODEL_STATE_LOADING)
        fault, package = "", None
        rest = 0.0 if self._is_first else self._rest
        try:
            package = await asyncio.to_thread(load, self._root, key, threads=self._threads, rest=rest)
            live = self._registry.latest(key.name)
            if self._shadow and live and live.package.key <= key:
                self._registry.notes[key] = Note(pb.MODEL_STATE_SHADOW, f"is compared with {live.package.key}")
                await asyncio.to_thread(_check, live, package, rest)
        except ModelRefused as error:
            fault = str(error)
        if await asyncio.to_thread(fingerprint, key.folder(self._root)) != files:  # somebody wrote meanwhile
            del self._registry.notes[key]
            return
        self._done[key] = files
        if package and not fault:
            self._registry.serve(package)
        else:
            self._registry.refuse(key, fault)
        await self._on_change()

    async def _remove(self, key: Key) -> None:
        if self._registry.remove(key):
            del self._done[key]
            await self._on_change()
        elif self._done[key]:
            self._done[key] = ()
            log.error("last version of a model that is needed is gone; it serves on", extra={"model": key.name})


def _check(live: ServedModel, package: Package, rest: float) -> None:
    """Compare a new version with the one that serves.

    Raises:
        ModelRefused: It must not take over.
    """
    if package.labels != live.package.labels:
        raise ModelRefused(
            f"labels {package.labels} can't be compared to those that serve, {live.package.labels}; serve the model "
            "under another name, or without --shadow"
        )
    try:
        shown = compare(live.package, package, live.recent(), rest)
    except Exception as error:  # what a model raises on some images speaks against it
        raise ModelRefused(f"fails on recent images: {error}") from error
    if not shown.is_good:
        raise ModelRefused(str(shown))
    log.info("new version compared", extra={"model": package.name, "version": package.version, "shown": str(shown)})
