"""A stream that stays open for long."""

import asyncio

import grpc
import pytest
from packages import image_of

from digits.v1 import classifier_pb2 as pb

MESSAGES = 100_000


@pytest.mark.timeout(400)  # a busy machine passes 300 messages a second
async def test_a_hundred_thousand_messages_on_one_stream(server):
    """Each of 100,000 messages is answered, in order, and the server's memory does not grow with their number."""
    data = [
        pb.ClassifyStreamRequest(
            request=pb.ClassifyRequest(pixels=image_of(digit).tobytes(), omit_probabilities=True)
        ).SerializeToString()
        for digit in range(10)
    ]
    memory_mb = []
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.stream_stream("/digits.v1.DigitClassifier/ClassifyStream")()

        async def send():
            for number in range(MESSAGES):
                await call.write(data[number * 7 % 10])
            await call.done_writing()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            for number in range(MESSAGES):
                answer = pb.ClassifyStreamResponse.FromString(await call.read())
                assert list(answer.response.digits) == [number * 7 % 10]
                if number in {MESSAGES // 5, MESSAGES - 1}:
                    memory_mb.append(server.memory_mb)
            assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
    assert memory_mb[1] - memory_mb[0] < 16
