"""Requests are read and answers written as protobuf would have."""

import numpy as np
import pytest
from google.protobuf.internal.encoder import _VarintBytes
from google.protobuf.message import DecodeError

from digits.v1 import classifier_pb2 as pb
from digits_server.api import codec as wire
from digits_server.api import messages as converters
from digits_server.inference.engine import Predictions
from digits_server.inference.request import Outcome


def predictions(count, classes=10):
    random = np.random.default_rng(count)
    probabilities = random.random((count, classes), np.float32)
    return Predictions(
        random.integers(0, 10, count, dtype=np.uint8),
        probabilities.max(axis=1),
        probabilities,
        random.integers(0, 16, count, dtype=np.uint8),
        random.random(count, np.float32),
    )


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 16383, 16384, 40_960_000])
def test_varint(number):
    """Lengths of any size are encoded as protobuf does."""
    assert wire.varint(number) == _VarintBytes(number)


@pytest.mark.parametrize(
    "parts", [[(1, 0, 1)], [(64, 10, 11)], [(300, 7, 290)], [(128, 0, 128), (128, 0, 128), (9, 3, 5)]]
)
@pytest.mark.parametrize("with_probabilities", [True, False])
def test_response_reads_back_as_written(parts, with_probabilities):
    """One part or several, any rows of their batches: every field parses to exactly what the columns held."""
    outcomes = [Outcome(predictions(size), start, end, 0.25 * size, 0.5, size) for size, start, end in parts]
    fixed = pb.ClassifyResponse(model="m", version="7").SerializeToString()
    message = pb.ClassifyResponse.FromString(
        wire.response(fixed, converters.joined(outcomes), probabilities=with_probabilities)
    )

    def column(name):
        return np.concatenate([getattr(o.answers, name)[o.start : o.end] for o in outcomes])

    assert list(message.digits) == column("digits").tolist()
    assert list(message.confidences) == column("confidences").tolist()
    assert list(message.quality_flags) == column("flags").tolist()
    assert list(message.probabilities) == (column("probabilities").ravel().tolist() if with_probabilities else [])
    assert (message.model, message.version) == ("m", "7")
    assert message.timing == pb.Timing(
        queue_seconds=0.25 * max(size for size, _, _ in parts),
        inference_seconds=0.5 * len(parts),
        batch_size=max(size for size, _, _ in parts),
    )


def test_stream_response_wraps_a_response():
    """The bytes of a response become those of a stream's message that carries it."""
    response = pb.ClassifyResponse(digits=[1, 2], model="m" * 300)
    message = pb.ClassifyStreamResponse.FromString(wire.stream_response(response.SerializeToString()))
    assert message == pb.ClassifyStreamResponse(response=response)


REQUESTS = {
    "image": pb.ClassifyRequest(pixels=b"\0\x7f\xff" * 500),
    "vectors": pb.ClassifyRequest(vectors=[0.0, 0.25, 1.0] * 50),
    "both": pb.ClassifyRequest(pixels=b"x", vectors=[1.5]),
    "all": pb.ClassifyRequest(
        model="m\u00fc", version="7", pixels=b"x" * 784, top_k=200, omit_probabilities=True, request_id="id"
    ),
    "large number": pb.ClassifyRequest(top_k=4_000_000_000),
    "empty": pb.ClassifyRequest(),
}
FIELDS = [field.name for field in pb.ClassifyRequest.DESCRIPTOR.fields]


def fields(request):
    values = {name: getattr(request, name) for name in FIELDS}
    return values | {"pixels": bytes(values["pixels"]), "vectors": [float(number) for number in values["vectors"]]}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_read_as_protobuf_reads_it(name):
    """Every field has the value that was written, alone and in the message of a stream."""
    message = REQUESTS[name]
    assert fields(wire.request(message.SerializeToString())) == fields(message)
    streamed = pb.ClassifyStreamRequest(request=message).SerializeToString()
    assert fields(wire.stream_request(streamed)) == fields(message)


def test_usual_request_is_read_without_protobuf():
    """A request with an image, the usual one, is not parsed by protobuf, and its image is not copied."""
    data = REQUESTS["image"].SerializeToString()
    request = wire.request(data)
    assert isinstance(request, wire.Request)
    assert request.pixels.obj is data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x1a\x01a\x1a\x01b", id="a field twice: the last one counts"),
        pytest.param(b"\x22\x04\0\0\0\0\x22\x04\0\0\x80\x3f", id="packed numbers in two pieces"),
        pytest.param(b"\x25\0\0\x80\x3f", id="numbers not packed"),
        pytest.param(b"\x1a\x81\x80\x80\x80\x00x", id="a length of five bytes"),
        pytest.param(b"\xc2\x3e\x02hi\x1a\x01a", id="an unknown field"),
    ],
)
def test_unusual_request_is_left_to_protobuf(data):
    """Whatever else the format allows is read as well."""
    assert fields(wire.request(data)) == fields(pb.ClassifyRequest.FromString(data))
    streamed = b"\x0a" + bytes([len(data)]) + data
    assert fields(wire.stream_request(streamed)) == fields(pb.ClassifyRequest.FromString(data))


@pytest.mark.parametrize("read", [wire.request, wire.stream_request])
@pytest.mark.parametrize("length", range(1, 20))
def test_request_cut_short_is_an_error_or_what_protobuf_makes_of_it(read, length):
    """Bytes that end too soon, or a name that is not UTF-8, are refused exactly where protobuf refuses them."""
    parse = pb.ClassifyRequest.FromString
    if read is wire.stream_request:
        parse = pb.ClassifyStreamRequest.FromString
    message = pb.ClassifyRequest(model="m", pixels=b"x" * 3, top_k=300, request_id="\u00fc")
    whole = message.SerializeToString()
    if read is wire.stream_request:
        whole = pb.ClassifyStreamRequest(request=message).SerializeToString()
    for data in (whole[:length], whole.replace(b"m", b"\xff")[: length + 1]):
        try:
            expected = parse(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                read(data)
        else:
            assert fields(read(data)) == fields(getattr(expected, "request", expected))
