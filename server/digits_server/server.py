"""The life of a server: start, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from digits_server.api import classifier, open_inference
from digits_server.config import Config, SettingRefused, wants_traces
from digits_server.errors import ModelRefused
from digits_server.logs import Ready
from digits_server.metrics.definitions import Metrics
from digits_server.models.registry import Registry
from digits_server.models.repository import Repository
from digits_server.models.runtime import Runtime
from digits_server.rpc import fronts, reflection
from digits_server.rpc.interceptor import Interceptor
from digits_server.rpc.security import Access
from open_inference.v2 import inference_pb2_grpc

if TYPE_CHECKING:
    from digits_server.rpc.tracing import Tracing

log = logging.getLogger(__name__)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", classifier.SERVICE, open_inference.SERVICE)
"""Names under which the health service tells whether this server is ready, beside the names of models."""
GC_THRESHOLD = 10_000
"""New objects after which the collector looks for cycles among them; Python's own 700 come with each wave of calls."""


class Server:
    """One process that serves one repository of models on one port. Make it on the event loop that will run it.

    Args:
        config: The settings.
        metrics: What it measures.
        totals: Returns what this process and those beside it have measured, by model and name; called on any thread.
    """

    def __init__(
        self, config: Config, metrics: Metrics, totals: Callable[[], Mapping[str, Mapping[str, float]]]
    ) -> None:
        self._config = config
        self.is_ready = False
        """Whether it serves."""
        self._stop = asyncio.Event()
        self._metrics = metrics
        self._totals = totals
        self._tracing = _tracing()
        self._runtime = Runtime(config, metrics)
        self._registry = Registry(config.default_model, self._runtime.serve)
        self._models = Repository(
            config.models,
            self._registry,
            threads=config.inference_threads,
            every_s=config.reload_s,
            on_change=self._models_changed,
            shadow=config.shadow,
        )
        self._ever_served: set[str] = set()
        self._port = 0
        self._is_listening = False
        self._background: list[asyncio.Task[None]] = []
        self._health = health.aio.HealthServicer()
        self._access = Access(config, self._metrics)
        self._rpcs = Interceptor(self._metrics, self._access.guard, self._tracing, config.access_log_sample)
        self._front = fronts.make(config, self._rpcs)

    async def run(self, on_ready: Callable[[Ready], None], on_drain: Callable[[], None] = lambda: None) -> int:
        """Serve until `stop` is called or SIGTERM or SIGINT comes, then drain; return the exit status.

        It is 0 if everything that had been accepted was finished, 1 if the grace was over before. A second signal ends
        the process at once.

        Args:
            on_ready: Called when the server serves.
            on_drain: Called when it begins to drain.

        Raises:
            ModelRefused: There is no model to serve.
            SettingRefused: A setting can't work here, such as a port that is in use.
        """
        self._on_ready = on_ready
        self._front.on_signals(
            {
                signal.SIGTERM: self._asked_to_stop,
                signal.SIGINT: self._asked_to_stop,
                signal.SIGHUP: self.reload,
            }
        )
        stopped = asyncio.create_task(self._stop.wait())
        loading = asyncio.create_task(self._models.poll(is_told=True))
        await asyncio.wait([loading, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # nothing has been accepted yet, and nothing shall be
            loading.cancel()
            return 0
        await loading
        await self._start()
        await stopped
        on_drain()
        return await self._drain()

    def stop(self) -> None:
        """Let `run` drain."""
        self._stop.set()

    def reload(self) -> None:
        """Read again what may have changed on disk."""
        log.info("reloading")
        self._access.look()
        self._models.reload()

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            log.error("ended by a second signal", extra={"in_flight": self._rpcs.in_flight})
            os._exit(1)
        self._stop.set()

    async def _start(self) -> None:
        try:
            self._registry.settle_default(self._config.models)
        except ModelRefused as error:
            if not self._config.strict_readiness:
                raise
            log.warning("not ready", extra={"reason": str(error)})

        server: Any = self._rpcs  # as far as generated functions know
        classifier.add_to_server(classifier.DigitClassifier(self._registry, self._rpcs.refusal), server)
        inference = open_inference.InferenceService(self._registry, lambda: self.is_ready, self._totals)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [classifier.SERVICE, open_inference.SERVICE, health.SERVICE_NAME]
        if self._config.channelz:
            from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc  # noqa: PLC0415 - 2 MB, seldom used

            channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), server)
            names.append(channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
        reflection.add_to_server(names, server)

        for name in SERVICES:
            await self._health.set(name, NOT_SERVING)
        self._port = await self._front.start(self._access)
        self._is_listening = True
        # What has been loaded stays: no need to look through it again, nor often through calls, which leave no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        await self._models_changed()
        self._background = [asyncio.create_task(task) for task in (self._access.watch(), self._models.run())]

    async def _models_changed(self) -> None:
        """Tell those who watch what is served, and be ready as soon as that is enough; ready is ready until the drain.

        Later refusals change nothing about that: all servers that share a folder would leave at once.
        """
        serving = set(self._registry.names)
        self._ever_served |= serving
        for name in self._ever_served:
            await self._health.set(name, SERVING if name in serving else NOT_SERVING)
        faults = self._registry.faults
        self._metrics.models(refused=len(faults), is_readable=self._models.is_readable)
        is_fit = self._registry.has_default and not (self._config.strict_readiness and faults)
        if self._is_listening and not self.is_ready and not self._stop.is_set() and is_fit:
            for name in SERVICES:
                await self._health.set(name, SERVING)
            self.is_ready = True
            models = tuple(f"{model.package.name}/{model.package.version}" for model in self._registry.all())
            self._on_ready(Ready(self._port, self._front.name, models, self._registry.get().package.name))

    async def _drain(self) -> int:
        log.info("draining", extra={"in_flight": self._rpcs.in_flight, "grace_s": self._config.grace_s})
        # 1. Tell those who ask: nothing new, please.
        for task in self._background:
            task.cancel()
        self.is_ready = False
        self._rpcs.is_draining = True
        await self._health.enter_graceful_shutdown()
        # 2. Take nothing new, and finish what has been accepted, within the grace.
        is_finished = await self._front.drain(self._rpcs.finished, self._config.grace_s)
        # 3. Nobody can ask any more.
        self._registry.close()
        self._runtime.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)
        log.info("drained", extra={"is_finished": is_finished})
        return 0 if is_finished else 1


def _tracing() -> Tracing | None:
    """Return what makes traces, if the environment says where to send them."""
    if not wants_traces(os.environ):
        return None
    try:
        from digits_server.rpc.tracing import Tracing  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        reason = f"sending traces needs OpenTelemetry: digits-server[otel] ({error})"
        raise SettingRefused("OTEL_EXPORTER_OTLP_ENDPOINT", reason) from error
    return Tracing()
