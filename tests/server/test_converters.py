"""Messages to arrays and back."""

import numpy as np
import pytest

from digits.v1 import classifier_pb2 as pb
from digits_server.api import messages as converters
from digits_server.errors import InvalidArgument


def test_pixels_become_rows():
    """N x 784 bytes become an (n, 784) uint8 array."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 784), dtype=np.uint8)
    np.testing.assert_array_equal(converters.images(pb.ClassifyRequest(pixels=pixels.tobytes())), pixels)


def test_vectors_become_rows():
    """N x 784 numbers become an (n, 784) float32 array; both ends of the range are allowed."""
    vectors = np.random.default_rng(0).random((2, 784), np.float32)
    vectors[0, :2] = (0, 1)
    np.testing.assert_array_equal(converters.images(pb.ClassifyRequest(vectors=vectors.ravel())), vectors)


def vectors(value, at=5):
    numbers = np.zeros(784, np.float32)
    numbers[at] = value
    return numbers


@pytest.mark.parametrize(
    ("request_", "field", "fault"),
    [
        ({}, "pixels", "no images: pixels and vectors are both empty"),
        ({"pixels": b"x" * 783}, "pixels", "783 bytes; allowed is a multiple of 784"),
        ({"pixels": b"x" * 785}, "pixels", "785 bytes"),
        ({"vectors": [0.0] * 783}, "vectors", "783 numbers; allowed is a multiple of 784"),
        ({"pixels": b"x" * 784, "vectors": [0.0] * 784}, "vectors", "given beside pixels"),
        ({"vectors": vectors(float("nan"))}, "vectors", "element 5 is nan; allowed is 0 to 1"),
        ({"vectors": vectors(float("inf"))}, "vectors", "element 5 is inf"),
        ({"vectors": vectors(-0.01, at=783)}, "vectors", "element 783 is -0.01"),
        ({"vectors": vectors(255)}, "vectors", "element 5 is 255"),
    ],
)
def test_wrong_images_are_named(request_, field, fault):
    """The error names the field, the value and what is allowed."""
    with pytest.raises(InvalidArgument) as error:
        converters.images(pb.ClassifyRequest(**request_))
    assert error.value.field == field
    assert fault in error.value.fault


@pytest.mark.parametrize(
    ("request_", "field"),
    [({"top_k": 11}, "top_k"), ({"request_id": "x" * 129}, "request_id"), ({"request_id": "a\nb"}, "request_id")],
)
def test_wrong_options_are_named(request_, field):
    """Options out of their range are refused by name; a request id can't forge a log line."""
    with pytest.raises(InvalidArgument) as error:
        converters.options(pb.ClassifyRequest(**request_), classes=10)
    assert error.value.field == field
    assert "\n" not in error.value.message
