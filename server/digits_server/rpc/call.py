"""One gRPC call over ASGI: its messages, metadata, status and end, and the context that its handler is given."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import quote

import grpc

from digits_server.errors import public
from digits_server.rpc.frames import Frames, Refused, frame
from digits_server.rpc.limits import MESSAGE_S

if TYPE_CHECKING:
    from digits_server.rpc.context import Answer, Handler

Headers = list[tuple[bytes, bytes]]
Event = dict[str, Any]
"""ASGI's; a scope is one too."""
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
"""Of `grpc-timeout`."""
PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What `grpc-message` holds as it is."""
START: Event = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
END: Event = {"type": "http.response.body", "body": b"", "more_body": False}
RESERVED = frozenset((b"te", b"content-type", b"host", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"))
"""Headers that are no metadata."""


class Call:
    """One RPC; to its handler, as much of a `grpc.aio.ServicerContext` as those here use.

    Args:
        scope: ASGI's.
        receive: Returns a future of the next event.
        send: Sends one.
    """

    def __init__(self, scope: Event, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._frames = Frames()
        self._task = asyncio.current_task()
        self.began = time.monotonic()
        timeout_s = _timeout_s(self._headers.get(b"grpc-timeout", b""))
        self._deadline = None if timeout_s is None else self.began + timeout_s
        self._serialize: Callable[[object], bytes] | None = None
        self._is_unary = True
        self._is_read = False  # the message of a unary call is there
        self._is_listening = False  # more of the request has been asked for
        self._has_ended = self._has_left = False  # the request has come to its end, its caller is gone
        self._news: asyncio.Future[None] | None = None  # what `read` waits for
        self._is_started = False  # the response has begun
        self._code, self._details = grpc.StatusCode.OK, ""
        self._is_aborted = False
        self._trailers: Headers = []
        self.cause: tuple[grpc.StatusCode, str] | None = None
        """The status that it ends with, if it was cancelled by us."""

    @property
    def is_grpc(self) -> bool:
        """Whether the caller speaks gRPC, and so understands its statuses: they come as trailers."""
        content_type = self._headers.get(b"content-type", b"")
        return content_type.startswith(b"application/grpc") and self._headers.get(b"te") == b"trailers"

    async def answer(self, handler: Handler) -> None:
        """Have the handler answer, and send what it says."""
        self._serialize = handler.response_serializer
        behaviour = cast("Answer", handler.unary_unary or handler.unary_stream or handler.stream_stream)
        self._is_unary = not handler.request_streaming
        deserialize = handler.request_deserializer or bytes
        message = None
        try:
            if self._is_unary:
                request = await self.read()
                if request is None:
                    raise Refused(grpc.StatusCode.INTERNAL, "the call ended without a message")
                self._is_read = True
                response = await behaviour(deserialize(request), self)
            else:
                response = await behaviour(_Requests(self, deserialize), self)
            if not (handler.response_streaming or self._is_aborted):
                message = self._framed(response)
        except Refused as refused:
            self._code, self._details = refused.code, refused.message
        except grpc.aio.AbortError:
            pass  # `abort` has noted what to say
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - what other people's services let out; ours are intercepted
            fault = public(error)
            self._code, self._details = fault.code, fault.message
        await self.end(self._code, self._details, message)

    async def read(self) -> bytes | None:
        """Return the next message of the request; None: it has come to its end.

        Raises:
            Refused: What comes is no message.
            ConnectionError: The caller has left.
        """
        while (message := self._frames.next()) is None:
            if self._has_left:
                raise ConnectionAbortedError
            if self._has_ended:
                if self._frames.is_empty:
                    return None
                raise Refused(grpc.StatusCode.INTERNAL, "the call ended within a message")
            self._listen()
            self._news = asyncio.get_running_loop().create_future()
            try:
                await self._news
            finally:
                self._news = None
        return message

    def _listen(self) -> None:
        """Ask for more of the request, once. What is asked for comes even if nobody waits for it any more."""
        if not self._is_listening:
            self._is_listening = True
            asyncio.ensure_future(self._receive()).add_done_callback(self._heard)

    def _heard(self, received: asyncio.Future[Event]) -> None:
        self._is_listening = False
        event = received.result()
        if event["type"] == "http.request":
            self._has_ended = not event["more_body"]
            self._frames.feed(event["body"])
        else:
            self._has_left = True
        if self._news is None:
            if self._has_left:
                self.cancel(None)
        elif not self._news.done():
            self._news.set_result(None)

    async def write(self, response: object) -> None:
        """Send a message of a stream; returns when there is room for another one.

        Raises:
            ConnectionError: The caller has left.
        """
        await self._put(*self._start(), {**END, "body": self._framed(response), "more_body": True})

    async def end(self, code: grpc.StatusCode, details: str = "", message: bytes | None = None) -> None:
        """End the call with a status, after a last message if there is one."""
        trailers = [(b"grpc-status", b"%d" % code.value[0]), *self._trailers]
        if details:
            trailers.append((b"grpc-message", quote(details, safe=PRINTABLE).encode()))
        if message is None and not self._is_started:
            await self._put({**START, "headers": [*START["headers"], *trailers], "trailers": False}, END)
        else:
            last = END if message is None else {**END, "body": message}
            await self._put(*self._start(), last, {"type": "http.response.trailers", "headers": trailers})

    def _framed(self, response: Any) -> bytes:
        return frame(self._serialize(response) if self._serialize else response)

    def _start(self) -> tuple[Event, ...]:
        """Return what is to be sent before the first message."""
        is_started, self._is_started = self._is_started, True
        return () if is_started else (START,)

    async def _put(self, *events: Event) -> None:
        try:
            for event in events:
                sent = self._send(event)
                await (asyncio.shield(sent) if isinstance(sent, asyncio.Future) else sent)  # it is set even if we leave
        except OSError as error:  # pyvoy's own is one
            raise ConnectionAbortedError from error

    def look(self, now: float) -> None:
        """Cancel the call if its time is up or its caller has left. ASGI tells the latter only to those who ask."""
        if self._deadline is not None and now >= self._deadline:
            self.cancel((grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
        elif self._is_unary and not self._is_read and now - self.began > MESSAGE_S:
            text = f"the request's message did not come within {MESSAGE_S:g} s"
            self.cancel((grpc.StatusCode.DEADLINE_EXCEEDED, text))
        elif not (self._has_left or self._frames.is_full):
            self._listen()

    def cancel(self, cause: tuple[grpc.StatusCode, str] | None) -> None:
        """Cancel the handler, whichever task of it calls."""
        self.cause = cause
        if self._task and self._task is not asyncio.current_task():
            self._task.cancel()

    # What follows is ServicerContext's.

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the call with a status."""
        self._code, self._details, self._is_aborted = code, details, True
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """Return the metadata that came with the call."""
        return [_metadatum(key, value) for key, value in self._scope["headers"] if key not in RESERVED]

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Have these go out with the status."""
        self._trailers = [
            (key.encode(), base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode())
            for key, value in metadata
        ]

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller stops listening; None if it never does."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def peer(self) -> str:
        """Return the caller's address, as grpcio writes it."""
        host, port = self._scope["client"] or ("", 0)
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}" if host else "unix:"

    def set_code(self, code: grpc.StatusCode) -> None:
        """Have the call end with this status."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Have the call end with this message."""
        self._details = details


class _Requests(AsyncIterator[object]):
    """The messages of a stream. No generator: those leak tasks when cancelled."""

    def __init__(self, call: Call, deserialize: Callable[[bytes], object]) -> None:
        self._call, self._deserialize = call, deserialize

    async def __anext__(self) -> object:
        try:
            message = await self._call.read()
        except Refused as refused:  # the end of the whole call, not something for its handler to see to
            self._call.cancel((refused.code, refused.message))
            raise asyncio.CancelledError from None
        if message is None:
            raise StopAsyncIteration
        return self._deserialize(message)


def _timeout_s(text: bytes) -> float | None:
    """Return the seconds that `grpc-timeout` names; None: it names none."""
    number, unit = text[:-1], text[-1:].decode("latin-1")
    return int(number) * UNITS_S[unit] if number.isdigit() and len(number) <= 8 and unit in UNITS_S else None


def _metadatum(key: bytes, value: bytes) -> tuple[str, str | bytes]:
    name, text = key.decode("latin-1"), value.decode("latin-1")
    if not name.endswith("-bin"):
        return name, text
    try:
        return name, base64.b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return name, b""
