"""Arrays as people have them."""

import numpy as np
import pytest

from digits_client import InvalidImage, _arrays, _requests
from digits_client.testing import FakeDigitClient

INK = np.arange(784) % 2 == 1  # (784,) bool


@pytest.mark.parametrize("shape", [(784,), (28, 28), (28, 28, 1), (1, 28, 28), (1, 784), (1, 28, 28, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, bool, np.float16, np.float32, np.float64, ">f8"])
def test_one_image_in_any_clear_form(shape, dtype):
    """The usual shapes and types all give the same row, uint8 or float32."""
    full = 1 if np.issubdtype(dtype, np.floating) or dtype is bool else 255
    row = _requests.prepare((INK * full).astype(dtype).reshape(shape))
    is_float = np.issubdtype(dtype, np.floating)
    assert (row.shape, row.dtype) == ((1, 784), np.float32 if is_float else np.uint8)
    np.testing.assert_array_equal(row[0], INK * (1 if is_float else 255))


@pytest.mark.parametrize("shape", [(3, 784), (3, 28, 28), (3, 28, 28, 1), (3, 1, 28, 28), (1, 28, 28), (784, 784)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool, np.float32])
def test_many_images_in_one_array(shape, dtype):
    """The first axis counts the images, whatever follows."""
    assert _requests.rows(np.full(shape, 1 if dtype in {bool, np.float32} else 9, dtype)).shape == (shape[0], 784)


class Tensor:
    """Something that numpy can make an array of, as other libraries' tensors."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("it lies on another device")
        return self.array


@pytest.mark.parametrize(
    "image", [(INK * 255).tolist(), (INK * 1.0).reshape(28, 28).tolist(), tuple(INK.tolist()), Tensor(INK)]
)
def test_lists_and_tensors_are_arrays(image):
    """Numbers in lists, and what numpy makes an array of, are images."""
    client = FakeDigitClient(7)
    assert client.classify(image).digit == 7
    assert len(client.classify_many([image, image])) == 2
    assert [result.digit for result in client.stream([image])] == [7]


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros(783), r"shape \(783,\); allowed is \(784,\), \(28, 28\) or \(28, 28, 1\)"),
        (np.zeros((28, 28, 3), np.uint8), r"shape \(28, 28, 3\);.* pass PIL\.Image\.fromarray\(array\)"),
        (np.zeros((480, 640), np.uint8), r"another size or in colours: pass PIL\.Image\.fromarray"),
        (np.zeros((2, 28, 28)), r"shape \(2, 28, 28\)"),
        (np.array(3), r"shape \(\)"),
        (INK * 255.0, "floats from 0 to 255; allowed is 0 to 1: divide by 255"),
        (INK * 2.0 - 1, "floats from -1 to 1; allowed is 0 to 1$"),
        (INK * 1.0002, "floats from 0 to 1.0002; allowed is 0 to 1"),
        (INK * np.nan, "floats from nan to nan"),
        (np.where(INK, np.inf, 0), "floats from 0 to inf"),
        (INK * 256, "integers from 0 to 256; allowed is 0 to 255"),
        (INK * -1, "integers from -1 to 0"),
        (INK.astype(int), r"integers 0 and 1 only: .* pass array\.astype\(bool\)"),
        (INK.astype(complex), "dtype complex128; allowed are integers in 0 to 255, bool, or floats in 0 to 1"),
        (INK.astype(object), "dtype object"),
        (np.array(["a"] * 784), "dtype <U1"),
        ([[0.5] * 28] * 27 + [[0.5]], "numpy can't make one of this list"),
        (Tensor(None), "numpy can't make one of this Tensor: it lies on another device"),
        ([], r"shape \(0,\)"),
    ],
)
def test_what_is_unclear_is_refused_with_a_remedy(image, complaint):
    """The error says what was given, what is allowed and, where it is known, what to do."""
    with pytest.raises(InvalidImage, match=complaint):
        _requests.prepare(image)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((28, 28)), r"shape \(28, 28\); allowed is \(n, 784\), .*; it is one image: use classify"),
        (np.zeros((28, 28, 1)), "it is one image"),
        (np.zeros(784), "it is one image"),
        (np.zeros((5, 28, 28, 3), np.uint8), "in colours"),
        (np.zeros((0, 784)), "there are none"),
        (np.zeros((2, 783)), r"shape \(2, 783\)"),
    ],
)
def test_arrays_that_are_not_many_images_are_refused(images, complaint):
    """One image where many are wanted is told apart from what is none at all."""
    with pytest.raises(InvalidImage, match=complaint):
        _requests.rows(images)


@pytest.mark.parametrize("excess", [1e-7, 1e-6])
def test_rounding_is_no_fault(excess):
    """Floats that arithmetic led a little outside of 0 to 1 are taken for the bounds."""
    row = _arrays.row(np.linspace(-excess, 1 + excess, 784))
    assert (row.min(), row.max()) == (0, 1)
