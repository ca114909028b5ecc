"""How a model serves: in which batches, on the event loop or a thread, and who is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from digits_server.config import Config
from digits_server.inference.adaptive import Concurrency
from digits_server.inference.batcher import Batcher
from digits_server.inference.engine import Images, Predictions
from digits_server.metrics.definitions import Metrics
from digits_server.models.canary import RECENT_IMAGES, RecentImages
from digits_server.models.package import Package
from digits_server.models.registry import ServedModel

INLINE_BELOW_S = 0.001
"""Batches shorter than this run on the event loop: handing one to a thread and back costs it a tenth of that, and the
thread competes with the loop for the interpreter anyway. Longer ones would keep the loop from reading."""
INLINE_SHARE = 0.8
"""Share of the best images per second that batches short enough for the event loop must reach to stay there."""


class Runtime:
    """Makes of packages what serves them. To be closed when nothing is running any more.

    Args:
        config: The settings.
        metrics: Where batches and answers are counted.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def serve(self, package: Package) -> ServedModel:
        """Return what serves a package."""
        cost, size = package.cost, self._config.max_batch_size or package.cost.best_batch_size(INLINE_BELOW_S)
        is_inline = cost(size) <= INLINE_BELOW_S and cost.gain(size) >= INLINE_SHARE * cost.gain(cost.best_batch_size())
        if not is_inline and not self._config.max_batch_size:
            size = cost.best_batch_size()
        recent = RecentImages(RECENT_IMAGES if self._config.shadow else 0)
        observe = self._metrics.predicted(package)

        def run(images: Sequence[Images]) -> Predictions:
            predictions = package.engine.predict(images)
            recent.record(images)
            observe(predictions)
            return predictions

        batcher: Batcher[Images, Predictions] = Batcher(
            run,
            max_batch_size=size,
            max_queue=self._config.max_queue,
            cost=cost,
            max_wait_s=self._config.max_wait_ms / 1000,
            executor=None if is_inline else self._executor,
            expect=Concurrency(self._config.cpus),
            on_batch=self._metrics.batch(package.name),
        )
        retired = self._metrics.serving(package, lambda: batcher.waiting_rows)
        return ServedModel(package, batcher, retired, recent)

    def close(self) -> None:
        """End the thread, after the run that is under way."""
        self._executor.shutdown()
