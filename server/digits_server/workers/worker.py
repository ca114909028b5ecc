"""A process that serves: on its own, or as one of several on one port, at the end of a supervisor's channel."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from digits_server import logs
from digits_server.config import Config, SettingRefused
from digits_server.errors import ModelRefused
from digits_server.metrics import recorder as metrics
from digits_server.metrics.board import Board
from digits_server.metrics.boards import Boards
from digits_server.metrics.http import Pages
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
            server = Server(config, board)
            return await server.run(lambda ready: pages.announce(ready, [os.getpid()]))

        return _run(serve())


def main(channel: Connection, board_file: int) -> int:
    """Serve at the end of a supervisor's channel, until it says so or is gone; return the exit status."""
    (config,) = channel.recv()
    logs.to_stderr(config.log_level)
    board = Board(board_file, lambda key: channel.send(("key", key)))

    async def serve() -> int:
        server = Server(config, board)
        loop = asyncio.get_running_loop()
        threading.Thread(target=_obey, args=(channel, server, loop, config), name="channel", daemon=True).start()
        return await server.run(lambda ready: channel.send(("ready", ready)), lambda: channel.send(("draining", None)))

    try:
        return _run(serve())
    except SettingRefused as error:
        channel.send(("refused", error))
        return 2


def _obey(channel: Connection, server: Server, loop: asyncio.AbstractEventLoop, config: Config) -> None:
    """Hand on the supervisor's commands. Without a supervisor there is nothing to serve for."""
    commands: dict[str, Callable[..., None]] = {
        "drain": server.stop,
        "reload": server.reload,
    }
    try:
        while True:
            command, *arguments = channel.recv()
            loop.call_soon_threadsafe(commands[command], *arguments)
    except (EOFError, OSError):
        loop.call_soon_threadsafe(server.stop)
        time.sleep(config.grace_s + EXIT_S)
        os._exit(1)  # the event loop hangs, and nobody is left to end this process


def _run(serve: Coroutine[Any, Any, int]) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve)
    except ModelRefused as error:
        raise SettingRefused("--models", str(error)) from error


if __name__ == "__main__":
    # A copy: the descriptor itself is closed by the end of the process and nothing before it, which is how it is known.
    sys.exit(main(Connection(os.dup(int(sys.argv[1]))), int(sys.argv[2])))
