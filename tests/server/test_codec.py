"""Requests read and answers written in columns are those of the public contract."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from digits.v1 import classifier_pb2 as pb
from digits_server.api import codec, messages
from digits_server.errors import InvalidArgument
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


@pytest.mark.parametrize(
    "parts", [[(1, 0, 1)], [(64, 10, 11)], [(300, 7, 290)], [(128, 0, 128), (128, 0, 128), (9, 3, 5)]]
)
@pytest.mark.parametrize("with_probabilities", [True, False])
def test_response_reads_back_as_written(parts, with_probabilities):
    """One part or several, any rows of their batches: every field parses to exactly what the columns held."""
    outcomes = [Outcome(predictions(size), start, end, 0.25 * size, 0.5, size) for size, start, end in parts]
    written = codec.response(messages.joined(outcomes), probabilities=with_probabilities)
    message = pb.ClassifyResponse.FromString(written.SerializeToString())

    def column(name):
        return np.concatenate([getattr(o.answers, name)[o.start : o.end] for o in outcomes])

    assert list(message.digits) == column("digits").tolist()
    assert list(message.confidences) == column("confidences").tolist()
    assert list(message.quality_flags) == column("flags").tolist()
    assert list(message.probabilities) == (column("probabilities").ravel().tolist() if with_probabilities else [])
    assert message.timing == pb.Timing(
        queue_seconds=0.25 * max(size for size, _, _ in parts),
        inference_seconds=0.5 * len(parts),
        batch_size=max(size for size, _, _ in parts),
    )


@pytest.mark.parametrize("number", [0, 127, 128, 299, 70_000])
def test_numbers_of_any_size_are_a_packed_column(number):
    """A model may have more classes than a byte of a packed column can tell apart."""
    answer = codec.columns.ClassifyResponse(digits=codec.numbers(np.array([1, number, 2]), classes=number + 3))
    assert list(pb.ClassifyResponse.FromString(answer.SerializeToString()).digits) == [1, number, 2]


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
    return values | {"vectors": codec.vectors(request).tolist()}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_read_as_protobuf_reads_it(name):
    """Every field has the value that was written, alone and in the message of a stream."""
    message = REQUESTS[name]
    assert fields(codec.request(message.SerializeToString())) == fields(message)
    streamed = pb.ClassifyStreamRequest(request=message).SerializeToString()
    assert fields(codec.stream_request(streamed)) == fields(message)


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
def test_unusual_request_is_read_as_well(data):
    """Whatever else the format allows is read as well."""
    assert fields(codec.request(data)) == fields(pb.ClassifyRequest.FromString(data))
    streamed = b"\x0a" + bytes([len(data)]) + data
    assert fields(codec.stream_request(streamed)) == fields(pb.ClassifyRequest.FromString(data))


def test_floats_cut_short_are_an_error():
    """A column of floats that ends within one is refused, not rounded."""
    with pytest.raises(DecodeError):
        pb.ClassifyRequest.FromString(b"\x22\x05\0\0\0\0\0")
    with pytest.raises(InvalidArgument, match="5 bytes; allowed is a multiple of 4"):
        codec.vectors(codec.request(b"\x22\x05\0\0\0\0\0"))


@pytest.mark.parametrize("length", range(1, 20))
def test_request_cut_short_is_an_error_or_what_protobuf_makes_of_it(length):
    """Bytes that end too soon, or a name that is not UTF-8, are refused exactly where protobuf refuses them."""
    whole = pb.ClassifyRequest(model="m", pixels=b"x" * 3, top_k=300, request_id="\u00fc").SerializeToString()
    for data in (whole[:length], whole.replace(b"m", b"\xff")[: length + 1]):
        try:
            expected = pb.ClassifyRequest.FromString(data)
        except DecodeError:
            with pytest.raises(DecodeError):
                codec.request(data)
        else:
            assert fields(codec.request(data)) == fields(expected)
