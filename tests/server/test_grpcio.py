"""What grpcio's front adds to grpcio."""

import grpc

from digits_server.rpc import grpcio


class Untouched(dict):
    """An interceptor that wraps nothing."""

    handler = dict.get


async def echo(request, _context):
    return request


async def count(request, context):
    for number in request:
        await context.write(bytes([number]))


HANDLERS = {
    "/s/unary": grpc.unary_unary_rpc_method_handler(echo),
    "/s/many": grpc.unary_stream_rpc_method_handler(count),
}


async def test_call_whose_message_never_comes_is_answered(monkeypatch):
    """A caller who opens a unary call and sends nothing holds it for a bounded time, and is told why it ended."""
    monkeypatch.setattr(grpcio, "MESSAGE_S", 0.1)
    server = grpc.aio.server(handlers=[grpcio.Patience(Untouched(HANDLERS))])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for path in HANDLERS:
            call = channel.stream_stream(path)()
            assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert await call.details() == "the request's message did not come within 0.1 s"
        assert await channel.unary_unary("/s/unary")(b"\1") == b"\1"
        assert [answer async for answer in channel.unary_stream("/s/many")(b"\1\2")] == [b"\1", b"\2"]
        ended = channel.stream_unary("/s/unary")()
        await ended.done_writing()
        assert await ended.code() == grpc.StatusCode.INTERNAL
    await server.stop(None)
