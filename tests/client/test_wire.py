"""Requests and answers as bytes."""

import numpy as np
import pytest

from digits.v1 import classifier_pb2 as pb
from digits_client import InvalidRequest, ServerFault, _plan, _wire


def response(count, **fields):
    generator = np.random.default_rng(count)
    return pb.ClassifyResponse(
        **{
            "digits": generator.integers(0, 10, count).tolist(),
            "confidences": generator.random(count).tolist(),
            "probabilities": generator.random(count * 10).tolist(),
            "quality_flags": generator.integers(0, 16, count).tolist(),
            "model": "mödel",
            "version": "3",
            "timing": pb.Timing(queue_seconds=0.5, inference_seconds=0.25, batch_size=300),
            **fields,
        }
    )


def unpacked(message):
    """Return the same message with its digits not packed: a tag before each."""
    digits = b"".join(bytes([1 << 3, digit]) for digit in message.digits)
    rest = pb.ClassifyResponse.FromString(message.SerializeToString())
    rest.ClearField("digits")
    return digits + rest.SerializeToString()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.dtype(">f4")])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_requests_are_those_of_protobuf(dtype, count):
    """The bytes parse to the message that protobuf itself would have made, whatever the byte order of the array."""
    rows = np.random.default_rng(0).integers(0, 2, (count, 784)).astype(dtype)
    data, is_float = _plan.encoded(rows)
    message = pb.ClassifyRequest.FromString(_wire.request(_wire.options("m", "1"), data, is_float=is_float))
    field = {"vectors": rows.ravel().tolist()} if is_float else {"pixels": rows.tobytes()}
    assert message == pb.ClassifyRequest(model="m", version="1", **field)


@pytest.mark.parametrize("write", [lambda message: message.SerializeToString(), unpacked])
@pytest.mark.parametrize("count", [1, 2, 1024])
def test_answers_are_read_in_every_valid_form(count, write):
    """The columns are those of the message: read directly in the usual form, by protobuf itself in others."""
    message = response(count)
    columns = _wire.columns(write(message), count)
    assert columns.digits.tolist() == list(message.digits)
    np.testing.assert_array_equal(columns.confidences, np.array(message.confidences, np.float32))
    np.testing.assert_array_equal(columns.probabilities.ravel(), np.array(message.probabilities, np.float32))
    assert columns.probabilities.shape == (count, 10)
    assert columns.quality.tolist() == list(message.quality_flags)
    assert (columns.model, columns.version, columns.timing) == (message.model, message.version, message.timing)


def test_numbers_of_several_bytes_are_read():
    """Flags that a later server may add, above 127, are not torn into bytes."""
    assert _wire.columns(response(2, quality_flags=[1, 130]).SerializeToString(), 2).quality.tolist() == [1, 130]


def test_fields_that_came_later_are_ignored():
    """A field with a number that this client does not know changes nothing."""
    data = response(1).SerializeToString() + bytes([0b11111010, 1, 2]) + b"hi"  # field 31
    assert _wire.columns(data, 1).version == "3"


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
        _wire.columns(data, 2)


def test_probabilities_may_be_missing():
    """An answer without probabilities has rows of length 0."""
    assert _wire.columns(response(2, probabilities=[]).SerializeToString(), 2).probabilities.shape == (2, 0)


def test_stream_messages():
    """A streamed answer carries columns or an error with its class."""
    request = _wire.stream_request(b"")
    assert pb.ClassifyStreamRequest.FromString(request) == pb.ClassifyStreamRequest(request=pb.ClassifyRequest())
    answer = pb.ClassifyStreamResponse(response=response(1))
    assert _wire.stream_answer(answer.SerializeToString()).version == "3"
    wordy = answer.SerializeToString() + bytes([0b11111010, 1, 2]) + b"hi"  # field 31
    assert _wire.stream_answer(wordy).version == "3"
    error = pb.ClassifyStreamResponse(error=pb.StreamError(code=3, message="no"))
    assert isinstance(_wire.stream_answer(error.SerializeToString()), InvalidRequest)
    with pytest.raises(ServerFault):
        _wire.stream_answer(b"\x0a")
