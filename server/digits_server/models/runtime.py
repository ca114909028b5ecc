"""How a model serves: in which batches, on the event loop or a thread, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from digits_server.config import Config
from digits_server.inference.adaptive import Crowd
from digits_server.inference.batcher import Batcher
from digits_server.inference.engine import Images, Predictions
from digits_server.metrics.recorder import Metrics
from digits_server.models.package import Package
from digits_server.models.registry import ServedModel

INLINE_BELOW_S = 0.001
"""Batches shorter than this run on the event loop: handing one to a thread and back costs it a tenth of that, and the
thread competes with the loop for the interpreter anyway. Longer ones would keep the loop from reading."""
INLINE_SHARE = 0.8
"""Share of the best images per second that batches short enough for the event loop must reach to stay there."""


class Serving:
    """Makes of packages what serves them. To be closed when nothing is running any more.

    Args:
        config: The settings.
        metrics: Where batches and answers are counted.
        offer: Given a copy of each batch that a package has answered; called where it ran.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        offer: Callable[[Package, Sequence[Images]], None],
    ) -> None:
        self._config, self._metrics, self._offer = config, metrics, offer
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def __call__(self, package: Package) -> ServedModel:
        """Return what serves a package."""
        cost, size = package.cost, self._config.max_batch_size or package.cost.best_batch_size(INLINE_BELOW_S)
        is_inline = cost(size) <= INLINE_BELOW_S and cost.gain(size) >= INLINE_SHARE * cost.gain(cost.best_batch_size())
        if not is_inline and not self._config.max_batch_size:
            size = cost.best_batch_size()
        predicted = self._metrics.predicted(package)

        def run(images: Sequence[Images]) -> Predictions:
            predictions = package.engine.predict(images)
            self._offer(package, images)
            predicted(predictions)
            return predictions

        batcher: Batcher[Images, Predictions] = Batcher(
            run,
            max_batch_size=size,
            max_queue=self._config.max_queue,
            max_rows=self._config.max_rows,
            cost=cost,
            max_wait_s=self._config.max_wait_s,
            executor=None if is_inline else self._executor,
            expect=Crowd(self._config.cpus),
            on_batch=self._metrics.batch(package.name),
        )
        return ServedModel(package, batcher, self._metrics.serving(package, lambda: batcher.waiting_rows))

    def close(self) -> None:
        """End the thread, after the run that is under way."""
        self._executor.shutdown()
