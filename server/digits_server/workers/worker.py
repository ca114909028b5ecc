"""A process that serves: on its own, or as one of several on one port, at the end of a supervisor's pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from digits_server import logs
from digits_server.config import Config, SettingRefused
from digits_server.errors import ModelRefused
from digits_server.logs import Ready
from digits_server.metrics.aggregate import Page, by_model
from digits_server.metrics.definitions import Metrics
from digits_server.metrics.http import AdminServer, scrape
from digits_server.rpc import fronts
from digits_server.server import Server
from digits_server.workers.process import Command, Draining, Message, Report

BEAT_S = 0.25
"""Time between heartbeats of a process that serves alone."""
SILENT_S = 2.0
"""How long its event loop may say nothing before `/healthz` calls it hung."""
REPORT_S = 1.0
"""Time between a worker's reports: what it may have counted in vain when it is killed."""
EXIT_S = 5.0
"""Time beyond the grace that an orphan has to end by itself."""


def serve_alone(config: Config) -> int:
    """Serve in this process, with the admin endpoints, until a signal ends it; return the exit status.

    Raises:
        SettingRefused: A setting can't work here, such as a port that is in use.
    """
    try:
        return fronts.run(config, f"{__name__}:_serve_alone", config)
    except ModelRefused as error:
        raise SettingRefused("--models", str(error)) from error


async def _serve_alone(config: Config) -> int:
    metrics = Metrics()
    server = Server(config, metrics, lambda: by_model(metrics.collect()))
    last_beat = float("inf")

    async def beat() -> None:
        nonlocal last_beat
        while True:
            last_beat = time.monotonic()
            await asyncio.sleep(BEAT_S)

    def on_ready(ready: Ready) -> None:
        beats.append(asyncio.create_task(beat()))
        logs.announce(config, ready, admin.address, [os.getpid()])

    beats: list[asyncio.Task[None]] = []
    page = Page(metrics, workers_ready=lambda: int(server.is_ready), processes=lambda: {"0": os.getpid()})
    with AdminServer(
        config,
        page.registry,
        is_alive=lambda: time.monotonic() - last_beat < SILENT_S,
        is_ready=lambda: server.is_ready,
    ) as admin:
        return await server.run(on_ready)


async def serve(config: Config, file: int) -> int:
    """Serve, and tell the supervisor at the other end of the pipe `file`; return the exit status."""
    logs.to_stderr(config.log_level)
    # A copy: the descriptor itself is closed by the end of the process and nothing before it, which is how it is known.
    pipe = Connection(os.dup(file))
    metrics, loop = Metrics(), asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="pipe") as sender:  # a supervisor that stands still must not stop us

        def tell(message: Message) -> None:
            sender.submit(pipe.send, message)

        async def report() -> None:
            with contextlib.suppress(OSError):  # the supervisor is gone: see `_obey`
                while True:
                    await loop.run_in_executor(sender, pipe.send, Report(list(metrics.collect())))
                    await asyncio.sleep(REPORT_S)

        reports = asyncio.create_task(report())
        try:
            server = Server(config, metrics, lambda: by_model(scrape(config.metrics_host, config.metrics_port)))
            commands = {
                Command.DRAIN: server.stop,
                Command.RELOAD: server.reload,
                Command.REPORT: lambda: tell(Report(list(metrics.collect()), was_asked=True)),
            }
            threading.Thread(target=_obey, args=(pipe, commands, loop, config), name="commands", daemon=True).start()
            return await server.run(tell, lambda: tell(Draining()))
        except SettingRefused as error:
            tell(error)
            return 2
        except ModelRefused as error:
            tell(SettingRefused("--models", str(error)))
            return 2
        finally:
            reports.cancel()
            tell(Report(list(metrics.collect())))


def _obey(
    pipe: Connection,
    commands: Mapping[Command, Callable[[], None]],
    loop: asyncio.AbstractEventLoop,
    config: Config,
) -> None:
    """Hand on the supervisor's commands. Without a supervisor there is nothing to serve for."""
    try:
        while True:
            loop.call_soon_threadsafe(commands[pipe.recv()])
    except (EOFError, OSError):
        loop.call_soon_threadsafe(commands[Command.DRAIN])
        time.sleep(config.grace_s + EXIT_S)
        os._exit(1)  # the event loop hangs, and nobody is left to end this process
