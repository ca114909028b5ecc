"""More work than there is room or time for: what is taken is answered, the rest is refused at once, and says so."""

import grpc
import pytest
from conftest import ROOT, wait_until
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from packages import image_of
from traffic import Traffic

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

PIXELS = image_of(6).tobytes()


def test_queue_has_room_for_so_many_images(start):
    """Of a queue of 50, 50 images are admitted and answered; the next is refused, and told when to come again."""
    server = start("--workers=1", "--max-queue=50", "--max-batch-size=100", "--max-wait-ms=3000")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        calls = [stub.Classify.future(pb.ClassifyRequest(pixels=PIXELS * 7, version="1"), timeout=60) for _ in range(7)]
        wait_until(lambda: server.metric("digits_queue_depth") == 49)
        with pytest.raises(grpc.RpcError) as too_many:
            stub.Classify(pb.ClassifyRequest(pixels=PIXELS * 2, version="1"), timeout=60)
        calls.append(stub.Classify.future(pb.ClassifyRequest(pixels=PIXELS, version="1"), timeout=60))
        wait_until(lambda: server.metric("digits_queue_depth") == 50)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Classify(pb.ClassifyRequest(pixels=PIXELS, version="1"), timeout=60)
        (in_stream,) = stub.ClassifyStream(
            iter([pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=PIXELS, version="1"))]), timeout=60
        )
        assert in_stream.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert [list(call.result().digits) for call in calls] == [[6] * 7] * 7 + [[6]]
    for error in (too_many.value, refused.value):
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = RetryInfo()
        assert rpc_status.from_call(error).details[0].Unpack(retry)
        assert retry.retry_delay.ToNanoseconds() > 0
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert server.metric('digits_rejected_total{reason="queue_full"}') == 3
    assert server.stop() == 0


def test_callers_beyond_capacity_are_refused_and_the_others_answered(start, saw):
    """With far more callers than its queue has room for, each call is answered right or refused; afterwards all are."""
    server = start("--workers=1", "--max-queue=8", "--max-batch-size=64", "--max-wait-ms=100")
    with Traffic(server.address, bare=64) as traffic:
        traffic.more(2000)
    saw(traffic, "RESOURCE_EXHAUSTED")
    refused = traffic.outcomes["RESOURCE_EXHAUSTED"]
    assert refused
    assert traffic.outcomes["right"]
    assert server.metric("digits_rejected_total") == refused
    with Traffic(server.address, bare=4) as traffic:
        pass
    saw(traffic)
    assert server.stop() == 0


def test_call_without_the_time_to_wait_is_not_held(start):
    """The RPC's deadline reaches the queue: a call that can't wait for company runs at once, and others with it."""
    server = start("--workers=1", "--max-wait-ms=10000")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        patient = stub.Classify.future(pb.ClassifyRequest(pixels=PIXELS, version="1"))
        wait_until(lambda: server.metric("digits_queue_depth") == 1)
        answer = stub.Classify(pb.ClassifyRequest(pixels=PIXELS, version="1"), timeout=5)
        assert answer.timing.batch_size == patient.result().timing.batch_size == 2
    assert server.stop() == 0


def test_call_that_cannot_make_its_deadline_is_refused(start):
    """Work that would take longer than its caller waits never runs, and takes no place in the queue."""
    server = start("--workers=1", "--default-model=digits-cnn", models=ROOT / "models")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        request = pb.ClassifyRequest(pixels=PIXELS * 4096)

        def is_refused():
            with pytest.raises(grpc.RpcError) as error:
                stub.Classify(request, timeout=0.1)
            assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            return server.metric('digits_rejected_total{reason="deadline_too_short"}')

        wait_until(is_refused)
    assert server.metric("digits_batches_total") == 0
    assert server.stop() == 0
