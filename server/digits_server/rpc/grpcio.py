"""grpcio's asyncio stack as a front: works everywhere, and serves channelz."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import grpc

from digits_server.addresses import Address, reserved
from digits_server.config import Config, SettingRefused
from digits_server.rpc.limits import MAX_CONNECTIONS, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, MAX_STREAMS, MESSAGE_S

if TYPE_CHECKING:
    from digits_server.rpc.context import Answer, Context, Handler
    from digits_server.rpc.interceptor import Interceptor
    from digits_server.rpc.security import Access

FLUSH_S = 0.5
"""Time for the last answers to leave the sockets."""
HANDSHAKE_S = 20.0
"""Time for a client to say something after connecting."""
MIN_PING_INTERVAL_S = 0.5
"""Clients of ours ask every second, while calls wait, whether this host is still there; gRPC's own limit is 300 s."""


class Grpcio:
    """Listens with grpcio. Make it on the event loop that serves.

    Args:
        config: The settings.
        interceptor: What every RPC passes.
    """

    name = "grpcio"

    def __init__(self, config: Config, interceptor: Interceptor) -> None:
        self._config = config
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_ours)
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Both: between them some calls would fail by chance.
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # Only workers share their port: a second server must fail on it, not take a part of the calls by accident.
            ("grpc.so_reuseport", int(config.workers > 1)),
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.max_connection_age_ms", _ms(config.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(config.grace_s)),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(MIN_PING_INTERVAL_S)),
            ("grpc.keepalive_permit_without_calls", 1),  # clients may look after idle connections, at that pace
            ("grpc.server_handshake_timeout_ms", _ms(HANDSHAKE_S)),
            # A message of 4 MB can unpack to 4 GB, and gRPC limits only the packed size.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            ("grpc.enable_channelz", int(config.channelz)),
        ]
        self._server = grpc.aio.server(handlers=[Patience(interceptor)], options=options)

    def on_signals(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Have signals of the process call these, on the event loop."""
        for number, handler in handlers.items():
            asyncio.get_running_loop().add_signal_handler(number, handler)

    async def start(self, access: Access) -> int:
        """Listen, and begin to answer; return the port.

        Raises:
            SettingRefused: The address can't be had.
        """
        address = Address(self._config.host, self._config.port)
        credentials = access.credentials()
        try:
            # With several workers their supervisor holds the port. Alone, look first: grpc does not tell why it can't.
            if self._config.workers == 1:
                with reserved(address, shared=False):
                    pass
            if credentials:
                port = self._server.add_secure_port(str(address), credentials)
            else:
                port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise SettingRefused("--port", f"can't listen on {address}") from error
        await self._server.start()
        return port

    async def drain(self, finished: Callable[[], Awaitable[None]], grace_s: float) -> bool:
        """Close the port and tell clients to go elsewhere (GOAWAY), then as the protocol says."""
        stopping = asyncio.create_task(self._server.stop(grace_s + FLUSH_S))
        is_finished = await within(grace_s, finished)
        await self._server.stop(FLUSH_S)  # what is left are endless streams (health watches), or those out of time
        await stopping
        return is_finished


class Patience(grpc.GenericRpcHandler):
    """The handlers of an interceptor, but that a call of one message is answered even if that does not come.

    grpcio itself would wait for as long as the caller stays. So it takes such a call for one of many messages, of which
    the first is waited for here.
    """

    def __init__(self, interceptor: Interceptor) -> None:
        self._interceptor = interceptor
        self._patient: dict[str, Handler] = {}  # by path

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a method; None: there is no such method."""
        path = handler_call_details.method
        handler = self._patient.get(path) or self._interceptor.handler(path)
        if handler is None or handler.request_streaming:
            return handler
        self._patient[path] = _patient(handler)
        return self._patient[path]


def _patient(handler: Handler) -> Handler:
    behaviour = cast("Answer", handler.unary_unary or handler.unary_stream)

    async def call(_requests: object, context: Context) -> object:
        try:
            async with asyncio.timeout(MESSAGE_S):
                request = await context.read()
        except TimeoutError:
            text = f"the request's message did not come within {MESSAGE_S:g} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        if request is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INTERNAL, "the call ended without a message")
        return await behaviour(request, context)

    wrap: Any = grpc.stream_stream_rpc_method_handler if handler.unary_stream else grpc.stream_unary_rpc_method_handler
    return wrap(call, handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


async def within(grace_s: float, finished: Callable[[], Awaitable[None]]) -> bool:
    """Return whether `finished` returns in time."""
    try:
        async with asyncio.timeout(grace_s):
            await finished()
    except TimeoutError:
        return False
    return True


def _is_ours(record: logging.LogRecord) -> bool:
    """Keep away the stacks that grpcio logs for what clients do: odd metadata, leaving before the answer."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ not in {"UnicodeDecodeError", "ExecuteBatchError"}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
