"""Requests and answers as bytes."""

import numpy as np
import pytest

from digits.v1 import classifier_pb2 as pb
from digits_client import InvalidRequest, ServerFault, _codec, _requests

OPTIONS = _codec.Options("m", "1")


def response(count, classes=10, **fields):
    generator = np.random.default_rng(count)
    return pb.ClassifyResponse(
        **{
            "digits": generator.integers(0, classes, count).tolist(),
            "confidences": generator.random(count).tolist(),
            "probabilities": generator.random(count * classes).tolist(),
            "quality_flags": generator.integers(0, 16, count).tolist(),
            "model": "mödel",
            "version": "3",
            "timing": pb.Timing(queue_seconds=0.5, inference_seconds=0.25, batch_size=300),
            **fields,
        }
    )


def unpacked(message):
    """Return the same message with its digits not packed: a tag before each."""
    varints = [bytes([it]) if it < 128 else bytes([it & 127 | 128, it >> 7]) for it in message.digits]
    digits = b"".join(b"\x08" + varint for varint in varints)
    rest = pb.ClassifyResponse.FromString(message.SerializeToString())
    rest.ClearField("digits")
    return digits + rest.SerializeToString()


def split(message):
    """Return the same message with its probabilities in two pieces, each of which is a multiple of the images."""
    half = len(message.probabilities) // 2
    first = pb.ClassifyResponse(probabilities=message.probabilities[:half]).SerializeToString()
    rest = pb.ClassifyResponse.FromString(message.SerializeToString())
    del rest.probabilities[:half]
    return first + rest.SerializeToString()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.dtype(">f4")])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_requests_are_those_of_the_contract(dtype, count):
    """The bytes parse to the contract's message, whatever the byte order of the array."""
    rows = np.random.default_rng(0).integers(0, 2, (count, 784)).astype(dtype)
    data, is_float = _requests.encoded(rows)
    field = {"vectors": rows.ravel().tolist()} if is_float else {"pixels": rows.tobytes()}
    expected = pb.ClassifyRequest(model="m", version="1", **field)
    assert pb.ClassifyRequest.FromString(_codec.request(OPTIONS, data, is_float=is_float)) == expected
    streamed = _codec.stream_request(OPTIONS, data, is_float=is_float)
    assert pb.ClassifyStreamRequest.FromString(streamed).request == expected


@pytest.mark.parametrize("write", [lambda message: message.SerializeToString(), unpacked, split])
@pytest.mark.parametrize(("count", "classes"), [(1, 10), (2, 10), (1024, 10), (3, 26), (5, 1000)])
def test_answers_are_read_in_every_valid_form(count, classes, write):
    """The columns are those of the message, however it was written and whatever the number of classes."""
    message = response(count, classes)
    columns = _codec.columns(write(message), count)
    assert columns.digits.tolist() == list(message.digits)
    np.testing.assert_array_equal(columns.confidences, np.array(message.confidences, np.float32))
    np.testing.assert_array_equal(columns.probabilities.ravel(), np.array(message.probabilities, np.float32))
    assert columns.probabilities.shape == (count, classes)
    assert columns.quality.tolist() == list(message.quality_flags)
    assert (columns.model, columns.version) == (message.model, message.version)
    assert columns.timing.SerializeToString() == message.timing.SerializeToString()


def test_numbers_of_several_bytes_are_read():
    """Flags that a later server may add, above 127, are not torn into bytes."""
    assert _codec.columns(response(2, quality_flags=[1, 130]).SerializeToString(), 2).quality.tolist() == [1, 130]


def test_fields_that_came_later_are_ignored():
    """A field with a number that this client does not know changes nothing."""
    data = response(1).SerializeToString() + bytes([0b11111010, 1, 2]) + b"hi"  # field 31
    assert _codec.columns(data, 1).version == "3"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\xff",
        response(2).SerializeToString()[:-1],
        response(3).SerializeToString(),
        response(2, quality_flags=[0]).SerializeToString(),
        response(2, confidences=[]).SerializeToString(),
        response(2, probabilities=[0.5]).SerializeToString(),
    ],
)
def test_wrong_answers_are_the_servers_fault(data):
    """An answer that is cut short, or is not about the two images of the request, is an error, not wrong columns."""
    with pytest.raises(ServerFault):
        _codec.columns(data, 2)


def test_probabilities_may_be_missing():
    """An answer without probabilities has rows of length 0."""
    assert _codec.columns(response(2, probabilities=[]).SerializeToString(), 2).probabilities.shape == (2, 0)


def test_streamed_answers():
    """A streamed answer carries columns, in any valid form, or an error with its class."""
    answer = pb.ClassifyStreamResponse(response=response(1))
    assert _codec.stream_answer(answer.SerializeToString()).version == "3"
    wordy = answer.SerializeToString() + bytes([0b11111010, 1, 2]) + b"hi"  # field 31
    assert _codec.stream_answer(wordy).version == "3"
    many = pb.ClassifyStreamResponse(response=response(1, 1000, digits=[999]))
    assert _codec.stream_answer(many.SerializeToString()).digits.tolist() == [999]
    error = pb.ClassifyStreamResponse(error=pb.StreamError(code=3, message="no"))
    assert isinstance(_codec.stream_answer(error.SerializeToString()), InvalidRequest)
    for broken in (b"\x0a", b""):
        with pytest.raises(ServerFault):
            _codec.stream_answer(broken)
