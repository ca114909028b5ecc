"""Damage changes images as told, as many as told, and leaves them images."""

from __future__ import annotations

import numpy as np
import pytest

from digits_export.damage import KINDS, damage


def test_a_share_of_the_images_is_damaged(test_images):
    """About the share changes, the others and what was handed in stay as they were."""
    images = test_images.images[:1000]
    before = images.copy()
    damaged = damage(images, 0.3, np.random.default_rng(0))
    changed = (damaged != before).any(axis=(1, 2)).mean()
    assert 0.25 <= changed <= 0.35
    assert np.array_equal(images, before)
    assert np.array_equal(damage(images, 0, np.random.default_rng(0)), before)


def test_equal_generators_damage_equally(test_images):
    """The generator is the only source of chance."""
    first, again, other = (damage(test_images.images[:50], 1, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_changes_an_image_and_leaves_ink(name, test_images):
    """What comes back is a 28 x 28 image of bytes, another than before, never empty; the original is untouched."""
    rng = np.random.default_rng(1)
    changed = 0
    for image in test_images.images[:30]:
        before = image.copy()
        damaged = KINDS[name](image, rng)
        assert (damaged.shape, damaged.dtype) == ((28, 28), np.uint8)
        assert damaged.max() > 30
        assert np.array_equal(image, before)
        changed += not np.array_equal(damaged, before)
    assert changed >= 20
