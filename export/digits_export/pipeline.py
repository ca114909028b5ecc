"""The input pipeline: deforms, damages and shuffles ahead of the training step, in threads, in a fixed order.

Every block of images has its own random generator, seeded by (seed, epoch, block): which thread prepares it and when
makes no difference, and training resumed at epoch 7 sees what it would have seen. OpenCV and NumPy let go of the
interpreter lock while they work, so threads suffice and nothing is copied between processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from digits_export.damage import damage
from digits_export.data import CLASSES, NO_DIGIT, Floats, Images, Labels, Split, to_vectors
from digits_export.deform import STRIP, deform
from digits_export.recipe import Recipe

Targets = Floats | Labels  # (n, 10) float32 or, where a recipe wants integers, (n,) int64
Batch = tuple[Floats, Targets]  # (n, 784) in [0, 1]
Block = tuple[Images, Targets]  # (n, 28, 28) uint8


@dataclass(frozen=True)
class Pipeline:
    """Endless batches of deformed training images with their targets."""

    data: Split
    recipe: Recipe
    workers: int = 1

    @property
    def steps(self) -> int:
        """Full batches an epoch (what is left over waits for another epoch's shuffle)."""
        return len(self.data) // self.recipe.fit.batch_size

    def batches(self, first_epoch: int = 0) -> Iterator[Batch]:
        """Yield batches without end, from the start of the given epoch; the next epoch is prepared meanwhile."""
        cv2.setNumThreads(1)  # the workers are the threads
        size = self.recipe.fit.batch_size
        with ThreadPoolExecutor(self.workers, "deform") as pool:
            ready = self._submit(pool, first_epoch)
            try:
                for epoch in itertools.count(first_epoch):
                    blocks = [future.result() for future in ready]
                    ready = self._submit(pool, epoch + 1)
                    images, answers = (np.concatenate(column) for column in zip(*blocks, strict=True))
                    order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(images))
                    for step in range(self.steps):
                        rows = order[step * size : (step + 1) * size]
                        yield to_vectors(images[rows]), answers[rows]
            finally:
                pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, epoch: int) -> list[Future[Block]]:
        blocks = range(-(-len(self.data) // STRIP))
        return [pool.submit(self._prepare, epoch, block) for block in blocks]

    def _prepare(self, epoch: int, block: int) -> Block:
        part = self.data.take(slice(block * STRIP, (block + 1) * STRIP))
        deformation = self.recipe.deformation_at(epoch)
        if deformation.is_active:
            rng = np.random.default_rng((self.recipe.seed, epoch, block + 1))
            part = Split(deform(part.images, deformation, rng), part.labels)
        if self.recipe.foreign.damaged:
            rng = np.random.default_rng((self.recipe.seed, epoch, block + 1, 1))
            part = Split(damage(part.images, self.recipe.foreign.damaged, rng), part.labels)
        return part.images, part.labels if self.recipe.fit.integer_labels else targets(part.labels)


def targets(labels: Labels) -> Floats:
    """Return (n, 10) of what a network is told to answer: a row of 1 for the digit, an even one where there is none."""
    rows = np.full((len(labels), CLASSES), 1 / CLASSES, np.float32)
    digits = labels != NO_DIGIT
    rows[digits] = np.eye(CLASSES, dtype=np.float32)[labels[digits]]
    return rows
