"""The life of a server: start, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from digits.v1 import classifier_pb2_grpc
from digits_server.api import classifier as servicers
from digits_server.api import open_inference
from digits_server.config import Config, SettingRefused, wants_traces
from digits_server.errors import ModelRefused
from digits_server.logs import Ready
from digits_server.metrics.definitions import Metrics
from digits_server.models.registry import Registry
from digits_server.models.repository import Repository
from digits_server.models.runtime import Runtime
from digits_server.rpc import transports as transport
from digits_server.rpc.access_log import access_log
from digits_server.rpc.interceptor import Intercepted, Observer, Tolerant
from digits_server.rpc.security import Access
from open_inference.v2 import inference_pb2_grpc

if TYPE_CHECKING:
    from digits_server.rpc.tracing import Tracing

log = logging.getLogger(__name__)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", servicers.SERVICE, open_inference.SERVICE)
"""Names under which the health service tells whether this server is ready, beside the names of models."""
GC_THRESHOLD = 10_000
"""New objects after which the collector looks for cycles among them; Python's own 700 come with each wave of calls."""


class Server:
    """One process that serves one repository of models on one port. Make it on the event loop that will run it.

    Args:
        config: The settings.
        metrics: What it measures.
    """

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self.is_ready = False
        """Whether it serves."""
        self._stop = asyncio.Event()
        self._metrics = metrics
        self._tracing = _tracing()
        self._runtime = Runtime(config, self._metrics, self._tracing)
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
        self._background: list[asyncio.Task[None]] = []
        self._health = health.aio.HealthServicer()
        self._transport = transport.make(config)
        self._access = Access(config, self._metrics)
        observer: Observer | None = self._tracing.rpc if self._tracing else None
        if config.access_log_sample:
            observer = access_log(config.access_log_sample, observer)
        self._rpcs = Intercepted(self._transport, self._metrics, self._access.guard, observer)

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
        loop = asyncio.get_running_loop()  # its end is that of the handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        await self._start()
        await self._stop.wait()
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
        await self._models.poll(is_told=True)
        try:
            self._registry.settle_default(self._config.models)
        except ModelRefused as error:
            if not self._config.strict_readiness:
                raise
            log.warning("not ready", extra={"reason": str(error)})

        rpcs: Any = self._rpcs  # as much of a server as the generated function needs
        classifier_pb2_grpc.add_DigitClassifierServicer_to_server(servicers.DigitClassifier(self._registry), rpcs)
        service = open_inference.InferenceService(self._registry, lambda: self.is_ready)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, rpcs)
        others: Any = Tolerant(self._transport.server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, others)
        names = [servicers.SERVICE, open_inference.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if self._config.channelz:
            channelz_pb2_grpc.add_ChannelzServicer_to_server(channelz.aio.ChannelzServicer(), rpcs)
            names.append(channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
            reflection.aio.ReflectionServicer(names), others
        )

        for name in SERVICES:
            await self._health.set(name, NOT_SERVING)
        self._port = transport.bind(self._transport, self._config, self._access.credentials())
        await self._transport.server.start()
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
        refused = self._registry.refused
        self._metrics.models(refused=len(refused), is_readable=self._models.is_readable)
        is_fit = self._registry.has_default and not (self._config.strict_readiness and refused)
        if self._port and not self.is_ready and not self._stop.is_set() and is_fit:
            for name in SERVICES:
                await self._health.set(name, SERVING)
            self.is_ready = True
            models = tuple(f"{model.package.name}/{model.package.version}" for model in self._registry.all())
            self._on_ready(Ready(self._port, self._transport.name, models, self._registry.get().package.name))

    async def _drain(self) -> int:
        log.info("draining", extra={"in_flight": self._rpcs.in_flight, "grace_s": self._config.grace_s})
        # 1. Tell those who ask: nothing new, please.
        for task in self._background:
            task.cancel()
        self.is_ready = False
        await self._health.enter_graceful_shutdown()
        # 2. Take nothing new, and finish what has been accepted, within the grace.
        self._rpcs.is_draining = True
        is_finished = await self._transport.drain(self._rpcs.finished, self._config.grace_s)
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
