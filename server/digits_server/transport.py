"""The seam between the services and what carries them: everything about sockets and channels is decided here.

A transport is anything with the interface of `grpc.aio.Server`.
"""

from __future__ import annotations

import grpc

from digits_server.config import Config
from digits_server.errors import PortUnavailable


def grpcio(config: Config) -> grpc.aio.Server:
    """Return a server on grpcio's asyncio stack, not yet listening."""
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a second server on a busy port must fail, not share it by accident
        ],
    )


def bind(server: grpc.aio.Server, config: Config) -> int:
    """Let `server` listen where `config` says and return the port.

    Raises:
        PortUnavailable: The port can't be had.
    """
    try:
        return server.add_insecure_port(f"{config.host}:{config.port}")
    except RuntimeError as error:
        raise PortUnavailable("--port", config.host, config.port) from error
