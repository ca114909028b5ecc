"""The input pipeline: deforms, asks the teacher and shuffles ahead of the training step, in threads, in a fixed order.

Every block of images has its own random generator, seeded by (seed, epoch, block): which thread prepares it and when
makes no difference, and training resumed at epoch 7 sees what it would have seen. OpenCV, NumPy and onnxruntime
let go of the interpreter lock while they work, so threads suffice and nothing is copied between processes.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from digits_export import calibration, convert
from digits_export.damage import damage
from digits_export.data import CLASSES, Floats, Images, Split, to_vectors
from digits_export.deform import STRIP, Deformation, deform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from digits_export.recipe import Recipe, Targets

Batch = tuple[Floats, Any]  # (n, 784) in [0, 1]; (n, 10) float32 targets or (n,) int64 labels
Block = tuple[Images, Any]  # (n, 28, 28) uint8 and their targets


@dataclass(frozen=True)
class Pipeline:
    """Endless batches of deformed training images with their targets."""

    data: Split
    recipe: Recipe
    packages: Path
    """Folder of model packages, where a teacher is looked up."""
    workers: int = 1
    _remembered: dict[tuple[Deformation, int, int], Any] = field(default_factory=dict, repr=False)
    """Targets (the teacher's answers are dear) by deformation, round and block."""

    @property
    def steps(self) -> int:
        """Full batches an epoch (what is left over waits for another epoch's shuffle)."""
        return len(self.data) // self.recipe.fit.batch_size

    def batches(self, first_epoch: int = 0) -> Iterator[Batch]:
        """Yield batches without end, from the start of the given epoch; the next epoch is prepared meanwhile."""
        cv2.setNumThreads(1)  # the workers are the threads
        size = self.recipe.fit.batch_size
        targets = TargetMaker(self.recipe.targets, self.packages)
        with ThreadPoolExecutor(self.workers, "deform") as pool:
            ready = self._submit(pool, first_epoch, targets)
            try:
                for epoch in itertools.count(first_epoch):
                    blocks = [future.result() for future in ready]
                    ready = self._submit(pool, epoch + 1, targets)
                    images, answers = (np.concatenate(column) for column in zip(*blocks, strict=True))
                    order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(images))
                    for step in range(self.steps):
                        rows = order[step * size : (step + 1) * size]
                        yield to_vectors(images[rows]), answers[rows]
            finally:
                for future in ready:
                    future.cancel()

    def _submit(self, pool: ThreadPoolExecutor, epoch: int, targets: TargetMaker) -> list[Future[Block]]:
        blocks = range(-(-len(self.data) // STRIP))
        return [pool.submit(self._prepare, epoch, block, targets) for block in blocks]

    def _prepare(self, epoch: int, block: int, targets: TargetMaker) -> Block:
        part = self.data.take(slice(block * STRIP, (block + 1) * STRIP))
        deformation = self.recipe.deformation_at(epoch)
        again = epoch % deformation.rounds
        if deformation.is_active:
            rng = np.random.default_rng((self.recipe.seed, again, block + 1))
            part = Split(deform(part.images, deformation, rng), part.labels)
        if self.recipe.foreign.damaged:
            rng = np.random.default_rng((self.recipe.seed, again, block + 1, 1))
            part = Split(damage(part.images, self.recipe.foreign.damaged, rng), part.labels)
        key = (deformation, again, block)
        if key not in self._remembered:
            self._remembered[key] = targets(part)
        return part.images, self._remembered[key]


class TargetMaker:
    """Turns labels into what the network is told to answer, with the help of a teacher where the recipe has one."""

    def __init__(self, settings: Targets, packages: Path) -> None:
        self._settings = settings
        self._teacher = convert.session(packages / settings.teacher / "model.onnx") if settings.teacher else None

    def __call__(self, part: Split) -> Any:
        """Return (n, 10) float32 targets of n images, or the (n,) labels themselves."""
        settings = self._settings
        if settings.integer_labels:
            return part.labels
        targets = np.full((len(part), CLASSES), settings.smoothing / CLASSES, np.float32)
        targets[np.arange(len(part)), part.labels] += 1 - settings.smoothing
        if self._teacher is not None:
            answer = convert.run(self._teacher, part.vectors)[0]
            softened = calibration.soften(answer, settings.teacher_temperature)
            targets += np.float32(settings.teacher_weight) * (softened - targets)
        return targets
