"""gRPC over ASGI, with an ASGI server that does what the test says."""

import asyncio

import grpc
import pytest

from digits_server.rpc import call as calls
from digits_server.rpc.envoy import Server
from digits_server.rpc.frames import PREFIX, Frames, Refused, frame
from digits_server.rpc.limits import MAX_MESSAGE_BYTES

HEADERS = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]


class Untouched(dict):
    """An interceptor that wraps nothing."""

    handler = dict.get


class Exchange:
    """One HTTP exchange: what the caller sends, and what it gets."""

    def __init__(self, *chunks, is_ended=True, headers=()):
        self.chunks, self.is_ended, self.has_left = list(chunks), is_ended, False
        self.scope = {"type": "http", "method": "POST", "path": "/s/m", "headers": [*HEADERS, *headers]}
        self.scope["client"] = ("::1", 5)
        self.messages, self.trailers = b"", {}

    def receive(self):
        """Return a future, as pyvoy does: after the end of the request, at once."""
        future = asyncio.get_running_loop().create_future()
        if self.has_left:
            future.set_result({"type": "http.disconnect"})
        elif self.chunks or self.is_ended:
            body = self.chunks.pop(0) if self.chunks else b""
            more = bool(self.chunks) or not self.is_ended
            future.set_result({"type": "http.request", "body": body, "more_body": more})
        return future

    async def send(self, event):
        self.messages += event.get("body", b"")
        self.trailers |= {name.decode(): value.decode() for name, value in event.get("headers", ())}

    async def run(self, handler):
        server = Server(Untouched({"/s/m": handler}))
        server.start()
        await server(self.scope, self.receive, self.send)
        return int(self.trailers.get("grpc-status", -1))


async def echo(request, _context):
    return request


UNARY = grpc.unary_unary_rpc_method_handler(echo)


@pytest.mark.parametrize("cut", range(1, 8))
async def test_message_may_come_in_pieces(cut):
    """Wherever HTTP cuts it, a message is put together."""
    data = frame(b"abc")
    exchange = Exchange(data[:cut], data[cut:])
    assert await exchange.run(UNARY) == 0
    assert exchange.messages == frame(b"abc")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", grpc.StatusCode.INTERNAL),
        (frame(b"abc")[:6], grpc.StatusCode.INTERNAL),
        (b"\x00\xff\xff\xff\xff", grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"\x01\x00\x00\x00\x01x", grpc.StatusCode.UNIMPLEMENTED),
    ],
    ids=["none", "cut short", "4 GB announced", "compressed"],
)
async def test_what_is_no_message_is_refused(data, code):
    """No message, half of one, one too long by its own word, and a compressed one each have their status."""
    assert await Exchange(data).run(UNARY) == code.value[0]


async def test_announced_length_is_refused_before_the_message_comes():
    """A caller that announces too much gets its status while it still could send."""
    exchange = Exchange(b"\x00\xff\xff\xff\xff", is_ended=False)
    assert await exchange.run(UNARY) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_message_that_never_comes_is_waited_for_in_bounds(monkeypatch):
    """A unary call without a message ends by itself, deadline or not."""
    monkeypatch.setattr(calls, "MESSAGE_S", 0.1)
    exchange = Exchange(is_ended=False)
    assert await exchange.run(UNARY) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert "did not come" in exchange.trailers["grpc-message"]


async def never(_request, _context):
    await asyncio.Event().wait()


async def test_deadline_ends_a_call():
    """`grpc-timeout` bounds every handler."""
    exchange = Exchange(frame(b""), headers=[(b"grpc-timeout", b"60m")])
    assert await exchange.run(grpc.unary_unary_rpc_method_handler(never)) == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_handler_of_a_caller_who_leaves_is_cancelled(is_stream):
    """Though the request has come to its end, or nobody reads on, it is noticed that its caller has left."""
    exchange, was_cancelled = Exchange(frame(b""), frame(b"")), asyncio.Event()

    async def handler(_request, _context):
        exchange.has_left = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    make = grpc.stream_stream_rpc_method_handler if is_stream else grpc.unary_unary_rpc_method_handler
    async with asyncio.timeout(20):
        await exchange.run(make(handler))
    assert was_cancelled.is_set()
    assert exchange.trailers == {}


async def test_streams_are_read_and_written_in_turn():
    """A handler gets each message and writes as many answers as it likes."""

    async def twice(requests, context):
        async for request in requests:
            await context.write(request)
            await context.write(request)

    exchange = Exchange(frame(b"a") + frame(b"bc")[:3], frame(b"bc")[3:])
    assert await exchange.run(grpc.stream_stream_rpc_method_handler(twice)) == 0
    assert exchange.messages == b"".join(map(frame, (b"a", b"a", b"bc", b"bc")))


@pytest.mark.parametrize("has_tasks", [False, True])
async def test_what_is_no_message_ends_a_stream(has_tasks, caplog):
    """A compressed message ends a stream with its status, whichever task of the handler reads; that is no fault."""

    async def read(requests, context):
        async for request in requests:
            await context.write(request)

    async def read_in_a_task(requests, context):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(requests, context))
            await asyncio.Event().wait()

    exchange = Exchange(frame(b"a"), b"\x01\x00\x00\x00\x01x")
    handler = grpc.stream_stream_rpc_method_handler(read_in_a_task if has_tasks else read)
    async with asyncio.timeout(20):
        assert await exchange.run(handler) == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert exchange.messages == frame(b"a")
    assert caplog.records == []


async def test_status_message_and_metadata_pass_unchanged():
    """Text in a status is percent-encoded, binary metadata is base64; both ways."""
    seen = {}

    async def refuse(_request, context):
        seen.update(dict(context.invocation_metadata()), peer=context.peer())
        await context.abort(grpc.StatusCode.NOT_FOUND, "50 % für\n", (("x-bin", b"\0\xff"), ("y", "z")))

    exchange = Exchange(frame(b""), headers=[(b"a-bin", b"AP8"), (b"b", b"c")])
    assert await exchange.run(grpc.unary_unary_rpc_method_handler(refuse)) == grpc.StatusCode.NOT_FOUND.value[0]
    assert seen == {"a-bin": b"\0\xff", "b": "c", "peer": "ipv6:[::1]:5"}
    assert exchange.trailers["grpc-message"] == "50 %25 f%C3%BCr%0A"
    assert (exchange.trailers["x-bin"], exchange.trailers["y"]) == ("AP8", "z")
    assert exchange.messages == b""


async def test_fault_of_a_handler_is_hidden(caplog):
    """What a handler lets out is INTERNAL, and in the log only."""

    async def broken(_request, _context):
        raise ValueError("secret")

    exchange = Exchange(frame(b""))
    assert await exchange.run(grpc.unary_unary_rpc_method_handler(broken)) == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in exchange.trailers["grpc-message"]
    assert caplog.records[0].exc_info[1].args == ("secret",)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"5S", 5), (b"250m", 0.25), (b"1H", 3600), (b"x", None), (b"", None), (b"9" * 400 + b"S", None)],
)
def test_timeouts(text, seconds):
    """`grpc-timeout` is read in all of its units; what is none counts as none."""
    assert calls._timeout_s(text) == seconds


def test_frames_hold_no_more_than_is_allowed():
    """A message is refused as soon as its prefix is there."""
    frames = Frames()
    frames.feed(PREFIX.pack(0, MAX_MESSAGE_BYTES + 1))
    with pytest.raises(Refused):
        frames.next()
