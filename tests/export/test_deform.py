"""Deformation moves ink as told, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from digits_export.deform import Deformation, deform, warp

ALL = Deformation(rotation_deg=15, scale=0.15, shear=0.2, shift_px=2, elastic_px=1.2)


def test_no_deformation_changes_no_pixel(test_images):
    """With every range at zero the images come back as they went in."""
    images = test_images.images[:50]
    assert np.array_equal(deform(images, Deformation(), np.random.default_rng(0)), images)
    assert not Deformation().is_active


def test_equal_generators_give_equal_images(test_images):
    """The generator is the only source of randomness; another seed gives other images."""
    images = test_images.images[:50]
    first = deform(images, ALL, np.random.default_rng(3))
    assert np.array_equal(first, deform(images, ALL, np.random.default_rng(3)))
    assert not np.array_equal(first, deform(images, ALL, np.random.default_rng(4)))


def test_every_image_has_its_own_deformation(test_images):
    """Copies of one image come back all different."""
    copies = np.repeat(test_images.images[:1], 20, axis=0)
    assert len(np.unique(deform(copies, ALL, np.random.default_rng(0)), axis=0)) == 20


def test_ink_never_bleeds_into_a_neighbour():
    """An empty image between two full ones stays empty, however strong the deformation."""
    images = np.full((3, 28, 28), 255, np.uint8)
    images[1] = 0
    strong = Deformation(shift_px=10, elastic_px=5)
    for seed in range(20):
        assert not deform(images, strong, np.random.default_rng(seed))[1].any()


def test_shifts_by_whole_pixels_exactly():
    """A map that looks two columns to the right moves the ink two columns to the left."""
    images = np.zeros((1, 28, 28), np.uint8)
    images[0, 10, 15] = 200
    moved = warp(images, np.eye(2, dtype=np.float32)[None], np.array([[0, 2]], np.float32))
    assert moved[0, 10, 13] == 200
    assert moved.sum() == 200


def test_a_quarter_turn_is_numpys_quarter_turn(test_images):
    """Rotation is about the centre of the image, without drift."""
    images = test_images.images[:5]
    turn = np.array([[[0, 1], [-1, 0]]], np.float32).repeat(5, axis=0)
    turned = warp(images, turn, np.zeros((5, 2), np.float32))
    assert np.array_equal(turned, np.rot90(images, axes=(1, 2))) or np.array_equal(turned, np.rot90(images, -1, (1, 2)))


def test_the_elastic_field_is_as_strong_as_asked():
    """The root mean square of the displacement is `elastic_px`, measured by moving a ramp of ink."""
    ramp = np.tile(np.arange(28, dtype=np.uint8) * 9, (500, 28, 1))
    moved = deform(ramp, Deformation(elastic_px=1.0), np.random.default_rng(0))
    displacement = (
        moved[:, 8:20, 8:20].astype(float) - ramp[:, 8:20, 8:20]
    ) / 9  # the middle: nothing is cut off there
    # 500 fields of some 30 independent patches each: the estimate is good to a percent or two; rounding adds one.
    assert np.sqrt((displacement**2).mean()) == pytest.approx(1.0, abs=0.05)
