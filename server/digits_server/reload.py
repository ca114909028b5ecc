"""Keeps what is served equal to what is in the models folder, while requests are answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from digits.v1 import classifier_pb2 as pb
from digits_server.errors import ModelRefused
from digits_server.packages import Key, Signature, find, load, sign
from digits_server.registry import Note, Registry

log = logging.getLogger(__name__)


class Watch:
    """Looks at a models folder again and again, loads what is new and removes what is gone. One step after the other.

    A version is loaded when its files are the same in two looks, and only counts if they still are when it has been:
    what is being copied is left alone. What was refused is tried again when its files change. If the folder can't be
    read, or is empty, everything that is served stays: volumes get unmounted by mistake.

    Args:
        root: The models folder; it is only read.
        registry: What is served.
        threads: Threads of one run of a model.
        every_s: Time between looks; 0: only when told.
        on_change: Awaited after each change of the registry, or of `is_readable`.
    """

    def __init__(
        self, root: Path, registry: Registry, *, threads: int, every_s: float, on_change: Callable[[], Awaitable[None]]
    ) -> None:
        self._root = root
        self._registry = registry
        self._threads = threads
        self._every_s = every_s
        self._on_change = on_change
        self._told = asyncio.Event()
        self._seen: dict[Key, Signature] = {}  # in the last look
        self._done: dict[Key, Signature] = {}  # loaded or refused; empty: gone, but still served
        self.is_readable = True
        """Whether the last look succeeded."""

    def look_now(self) -> None:
        """Look at once, and take it as said that nothing is being copied."""
        self._told.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s or None):
                    await self._told.wait()
            is_told = self._told.is_set()
            self._told.clear()
            try:
                await self.look(is_told=is_told)
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
        for key, signature in found.items():
            if signature != self._done.get(key) and (is_told or signature == before.get(key)):
                await self._load(key, signature)
        # Only now: what takes the place of a version should be there before it goes.
        for key in [key for key in self._done if key not in found and (is_told or key not in before)]:
            await self._remove(key)

    async def _readable(self, error: OSError | None) -> None:
        if self.is_readable != (error is None):
            self.is_readable = error is None
            if error:
                log.error("models can't be read; those that are loaded serve on", extra={"reason": str(error)})
            else:
                log.info("models can be read again")
            await self._on_change()

    async def _load(self, key: Key, signature: Signature) -> None:
        self._registry.notes[key] = Note(pb.MODEL_STATE_LOADING)
        fault, package = "", None
        try:
            package = await asyncio.to_thread(load, self._root, key, threads=self._threads)
        except ModelRefused as error:
            fault = str(error)
        if await asyncio.to_thread(sign, key.folder(self._root)) != signature:  # somebody wrote meanwhile
            del self._registry.notes[key]
            return
        self._done[key] = signature
        if package:
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
            log.error("last version of the default model is gone; it serves on", extra={"model": key.name})
