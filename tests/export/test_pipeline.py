"""The input pipeline feeds the same batches whatever its threads do."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from digits_export.data import NO_DIGIT
from digits_export.deform import Deformation
from digits_export.pipeline import Pipeline, targets
from digits_export.recipe import Foreign


@pytest.fixture
def deforming(small_recipe):
    """Return the small recipe with deformation."""
    return dataclasses.replace(small_recipe, deformation=Deformation(rotation_deg=10, elastic_px=1))


def _first(pipeline, count, epoch=0):
    return list(itertools.islice(pipeline.batches(epoch), count))


def _equal(left, right):
    return all(np.array_equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def test_batches_do_not_depend_on_the_number_of_threads(sample, deforming):
    """One worker and three give the same images and targets in the same order."""
    one, three = (_first(Pipeline(sample.train, deforming, workers), 100) for workers in (1, 3))
    assert _equal(one, three)


def test_a_later_epoch_is_the_same_from_the_start_or_on_its_own(sample, deforming):
    """Training that resumes at an epoch sees the images it would have seen."""
    pipeline = Pipeline(sample.train, deforming)
    whole = _first(pipeline, 2 * pipeline.steps)
    assert _equal(whole[pipeline.steps :], _first(pipeline, pipeline.steps, epoch=1))


def test_an_epoch_shows_each_image_once_in_new_order(sample, small_recipe):
    """Without deformation, an epoch is a shuffle of the training images, and the next another."""
    pipeline = Pipeline(sample.train.take(slice(0, 640)), small_recipe)
    epochs = [np.concatenate([x for x, _ in _first(pipeline, pipeline.steps, epoch)]) for epoch in (0, 1)]
    assert pipeline.steps == 10
    assert not np.array_equal(*epochs)
    assert all(np.array_equal(np.sort(e, axis=0), np.sort(pipeline.data.vectors, axis=0)) for e in epochs)


def test_a_share_of_the_images_comes_damaged_anew_each_epoch(sample, small_recipe):
    """Without deformation a third of the images differs from those given, another third in the next epoch."""
    chosen = dataclasses.replace(small_recipe, foreign=Foreign(damaged=0.3))
    pipeline = Pipeline(sample.train.take(slice(0, 640)), chosen)
    given = {row.tobytes() for row in pipeline.data.vectors}
    damaged = [
        {row.tobytes() for x, _ in _first(pipeline, pipeline.steps, epoch) for row in x} - given for epoch in (0, 1)
    ]
    assert all(0.2 <= len(rows) / 640 <= 0.4 for rows in damaged)
    assert len(damaged[0] & damaged[1]) < 30  # an outline has no chance in it


def test_an_image_without_a_digit_is_told_to_be_any():
    """A digit's row is a single 1; where there is none, each digit has a tenth."""
    rows = targets(np.array([3, NO_DIGIT]))
    assert rows.dtype == np.float32
    assert np.array_equal(rows[0], np.arange(10) == 3)
    assert np.allclose(rows[1], 0.1)


def test_the_last_epochs_have_their_own_deformation(sample, deforming):
    """With one last epoch and no deformation in it, the images of that epoch are those of the data."""
    fit = dataclasses.replace(deforming.fit, epochs=2, last_epochs=1)
    settling = dataclasses.replace(deforming, fit=fit, last_deformation=Deformation())
    pipeline = Pipeline(sample.train.take(slice(0, 640)), settling)
    first, last = (np.concatenate([x for x, _ in _first(pipeline, pipeline.steps, epoch)]) for epoch in (0, 1))
    assert np.array_equal(np.sort(last, axis=0), np.sort(pipeline.data.vectors, axis=0))
    assert not np.array_equal(np.sort(first, axis=0), np.sort(pipeline.data.vectors, axis=0))
