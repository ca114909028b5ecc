"""A process that serves: on its own, or as one of several on one port, at the end of a supervisor's channel."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from digits_server import logs
from digits_server.config import Config, SettingRefused
from digits_server.errors import ModelRefused
from digits_server.metrics import recorder as metrics
from digits_server.metrics.board import Board
from digits_server.metrics.boards import Boards
from digits_server.metrics.http import Pages
from digits_server.models.trial import Judge, Totals, Trial, Verdict
from digits_server.rpc import fronts
from digits_server.server import Server

SILENT_S = 2.0
"""How long the event loop may say nothing before `/healthz` calls it hung."""
EXIT_S = 5.0
"""Time beyond the grace that an orphan has to end by itself."""


def serve_alone(config: Config) -> int:
    """Serve in this process, with the pages, until a signal ends it; return the exit status.

    Raises:
        SettingRefused: A setting can't work here, such as a port that is in use.
    """
    board, boards = Board(), Boards()
    boards.add(board)
    page = metrics.page(boards, lambda: {"0": os.getpid()})
    with Pages(
        config,
        metrics=page,
        is_alive=lambda: time.monotonic() - (board.last_beat or time.monotonic()) < SILENT_S,
        is_ready=lambda: board.is_ready,
    ) as pages:

        async def serve() -> int:
            judge = Judge(config)

            def hear(trial: Trial, totals: Totals) -> None:
                if verdict := judge.hear(trial, totals):
                    server.decide(trial, verdict)

            server = Server(config, board, hear, judge.verdicts)
            return await server.run(lambda ready: pages.announce(ready, [os.getpid()]))

        try:
            return fronts.run(config, serve)
        except ModelRefused as error:
            raise SettingRefused("--models", str(error)) from error


def main(channel_file: int, board_file: int) -> int:
    """Serve at the end of a supervisor's channel, until it says so or is gone; return the exit status."""
    # A copy: the descriptor itself is closed by the end of the process and nothing before it, which is how it is known.
    with Connection(os.dup(channel_file)) as channel:
        config, verdicts = channel.recv()
    return fronts.run(config, _serve, channel_file, board_file, config, verdicts)


async def _serve(channel_file: int, board_file: int, config: Config, verdicts: Mapping[Trial, Verdict | None]) -> int:
    """Serve as `main` does, on the event loop of the front."""
    logs.to_stderr(config.log_level)
    channel = Connection(os.dup(channel_file))
    board = Board(board_file, lambda key: channel.send(("key", key)))
    try:
        server = Server(config, board, lambda *shown: channel.send(("trial", shown)), verdicts)
        loop = asyncio.get_running_loop()
        threading.Thread(target=_obey, args=(channel, server, loop, config), name="channel", daemon=True).start()
        return await server.run(lambda ready: channel.send(("ready", ready)), lambda: channel.send(("draining", None)))
    except SettingRefused as error:
        channel.send(("refused", error))
        return 2
    except ModelRefused as error:
        channel.send(("refused", SettingRefused("--models", str(error))))
        return 2


def _obey(channel: Connection, server: Server, loop: asyncio.AbstractEventLoop, config: Config) -> None:
    """Hand on the supervisor's commands. Without a supervisor there is nothing to serve for."""
    commands: dict[str, Callable[..., None]] = {
        "drain": server.stop,
        "reload": server.reload,
        "verdict": server.decide,
    }
    try:
        while True:
            command, *arguments = channel.recv()
            loop.call_soon_threadsafe(commands[command], *arguments)
    except (EOFError, OSError):
        loop.call_soon_threadsafe(server.stop)
        time.sleep(config.grace_s + EXIT_S)
        os._exit(1)  # the event loop hangs, and nobody is left to end this process


if __name__ == "__main__":
    from digits_server.workers.worker import (
        main as run,
    )  # by its name: what serves is found by it in the front's process

    sys.exit(run(*map(int, sys.argv[1:])))
