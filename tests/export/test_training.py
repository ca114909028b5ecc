"""Training: repeatable, and resumed after a break as if there had been none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from digits_export import models, recipe, strokes, training
from digits_export.data import Mnist, to_vectors

CHILD = """
import os, pickle, signal, sys
from pathlib import Path
from digits_export import training
job, folder = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
def kill(epoch, validation):
    if epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
training.train(*job, folder, quiet=True, after_epoch=kill)
"""


@pytest.fixture(scope="module")
def tiny(sample):
    """Return 640 training images."""
    return Mnist(sample.train.take(slice(0, 640)), sample.test)


@pytest.fixture(scope="module")
def everything(small_recipe):
    """Return a recipe with all that has a state: dropout, schedule, averages, deformation."""
    fit = recipe.Fit(epochs=4, batch_size=64, warmup_epochs=1, cosine=True, averaging=0.9)
    return dataclasses.replace(small_recipe, fit=fit, deformation=recipe.Deformation(rotation_deg=10, elastic_px=0.5))


@pytest.fixture(scope="module")
def unbroken(tiny, everything, tmp_path_factory):
    """Return the weights and history of a training without a break."""
    folder = tmp_path_factory.mktemp("unbroken")
    model, history = training.train(everything, tiny, folder, quiet=True)
    return model.get_weights(), history


def _same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_same_seed_gives_the_same_weights(tiny, everything, unbroken, tmp_path):
    """Two trainings of one recipe end in the same weights to the last bit; another seed does not."""
    model, _ = training.train(everything, tiny, tmp_path / "a", workers=2, quiet=True)
    other, _ = training.train(dataclasses.replace(everything, seed=8), tiny, tmp_path / "b", quiet=True)
    assert _same(model.get_weights(), unbroken[0])
    assert not _same(other.get_weights(), unbroken[0])


def test_a_killed_training_resumes_as_if_nothing_had_happened(tiny, everything, unbroken, tmp_path):
    """A process killed in its second epoch, started again, ends in the weights of an unbroken training."""
    import pickle  # noqa: PLC0415

    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((everything, tiny)))
    killed = subprocess.run([sys.executable, "-c", CHILD, str(job), str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    epochs = []
    model, history = training.train(
        everything, tiny, tmp_path, quiet=True, after_epoch=lambda epoch, _: epochs.append(epoch)
    )
    assert epochs == [2, 3]
    assert _same(model.get_weights(), unbroken[0])
    assert history.curves == unbroken[1].curves


def test_the_checkpoint_of_another_recipe_is_refused(tiny, everything, small_recipe, tmp_path):
    """A folder in which another recipe was interrupted is named, and nothing in it is touched."""

    def interrupt(_epoch, _validation):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(everything, tiny, tmp_path, quiet=True, after_epoch=interrupt)
    with pytest.raises(recipe.RecipeError, match="checkpoint of another recipe"):
        training.train(small_recipe, tiny, tmp_path, quiet=True)
    assert (tmp_path / "checkpoint.npz").is_file()


def test_what_training_left_can_be_read_again(tiny, small_recipe, tmp_path):
    """The trained network and its history stay in the folder, the checkpoint does not."""
    model, history = training.train(small_recipe, tiny, tmp_path, quiet=True)
    again, told = training.read_trained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"trained.keras", "history.json"}
    assert told == history
    assert np.array_equal(models.predict(again, tiny.test.vectors), models.predict(model, tiny.test.vectors))


@pytest.mark.parametrize("name", ["ann-flatten", "digits-cnn-mnist"])
def test_images_and_integer_labels_train_too(name, tiny, tmp_path):
    """Recipes that want images or integer labels learn from the same pipeline."""
    whole = recipe.load(name)
    short = dataclasses.replace(whole, fit=recipe.Fit(epochs=3, batch_size=32))
    _, history = training.train(short, tiny, tmp_path, quiet=True)
    assert history.curves["loss"][2] < history.curves["loss"][0]


def test_a_training_begins_with_the_weights_of_its_start(tiny, small_recipe, tmp_path, monkeypatch):
    """The recipe it starts from is trained once, in a folder within; with no learning to speak of its weights stay."""
    monkeypatch.setattr(training, "load", {small_recipe.name: small_recipe}.__getitem__)
    fit = dataclasses.replace(small_recipe.fit, epochs=1, learning_rate=1e-12)
    chosen = dataclasses.replace(small_recipe, name="next", start=small_recipe.name, fit=fit)
    model, history = training.train(chosen, tiny, tmp_path, quiet=True)
    first, learnt = training.read_trained(tmp_path / small_recipe.name)
    assert (history.epochs, learnt.epochs) == (1, 2)
    assert np.allclose(models.predict(model, tiny.test.vectors), models.predict(first, tiny.test.vectors), atol=1e-6)
    monkeypatch.setattr(training, "train", None)  # it is not trained again
    assert training._start(chosen, tiny, tmp_path, 1, quiet=True) is not None


def test_a_start_that_another_recipe_trained_is_refused(tiny, small_recipe, tmp_path, monkeypatch):
    """Weights that lie where the start's belong, but that its recipe as it is now would not give, are named."""
    known = {small_recipe.name: small_recipe}
    monkeypatch.setattr(training, "load", known.__getitem__)
    chosen = dataclasses.replace(small_recipe, name="next", start=small_recipe.name)

    def interrupt(_epoch, _validation):
        raise KeyboardInterrupt

    training.train(small_recipe, tiny, tmp_path / small_recipe.name, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        training.train(chosen, tiny, tmp_path, quiet=True, after_epoch=interrupt)
    known[small_recipe.name] = dataclasses.replace(small_recipe, seed=8)
    with pytest.raises(recipe.RecipeError, match=rf"{small_recipe.name} was trained by another recipe .*: remove it"):
        training.train(chosen, tiny, tmp_path, quiet=True)
    # Nor is the interrupted training, which began with those weights, gone on with.
    shutil.rmtree(tmp_path / small_recipe.name)
    with pytest.raises(recipe.RecipeError, match="checkpoint of another recipe"):
        training.train(chosen, tiny, tmp_path, quiet=True)


def test_a_start_without_a_record_of_its_recipe_is_refused(tiny, small_recipe, tmp_path, monkeypatch):
    """What was trained before recipes were recorded may be of any."""
    monkeypatch.setattr(training, "load", {small_recipe.name: small_recipe}.__getitem__)
    training.train(small_recipe, tiny, tmp_path / small_recipe.name, quiet=True)
    history = tmp_path / small_recipe.name / "history.json"
    told = json.loads(history.read_text())
    del told["recipe"]
    history.write_text(json.dumps(told))
    with pytest.raises(recipe.RecipeError, match="was trained by another recipe"):
        training.train(dataclasses.replace(small_recipe, name="next", start=small_recipe.name), tiny, tmp_path)


def test_a_share_of_the_starts_weights_is_kept(tiny, small_recipe, tmp_path, monkeypatch):
    """With a quarter kept, each weight lies a quarter of the way from where training ended back to where it began."""
    monkeypatch.setattr(training, "load", {small_recipe.name: small_recipe}.__getitem__)
    chosen = dataclasses.replace(small_recipe, name="next", start=small_recipe.name)
    ends, mean = (
        training.train(dataclasses.replace(chosen, kept=kept), tiny, tmp_path, quiet=True)[0].get_weights()
        for kept in (0.0, 0.25)
    )
    begins = training.read_trained(tmp_path / small_recipe.name)[0].get_weights()
    for begin, end, kept in zip(begins, ends, mean, strict=True):
        assert np.allclose(kept, 0.75 * end + 0.25 * begin, atol=1e-6)
        assert not np.allclose(begin, end, atol=1e-6)


def test_a_start_of_another_network_is_refused(tiny, small_recipe, tmp_path):
    """Weights of a network of another shape can't be begun with: the recipe's field is named."""
    chosen = dataclasses.replace(small_recipe, start="ann-tuned")
    with pytest.raises(recipe.RecipeError, match="start is 'ann-tuned', allowed: a recipe of the same network"):
        training.train(chosen, tiny, tmp_path, quiet=True)


def test_drawn_digits_join_the_images(tiny, small_recipe, tmp_path):
    """With 640 drawn digits beside 576 of MNIST's there are twice the batches, and both kinds are learnt."""
    epochs = []
    chosen = dataclasses.replace(small_recipe, foreign=recipe.Foreign(drawn=640))
    chosen = dataclasses.replace(chosen, fit=dataclasses.replace(chosen.fit, epochs=8))
    model, _ = training.train(chosen, tiny, tmp_path, quiet=True, after_epoch=lambda *at: epochs.append(at))
    images, labels = strokes.draw(200, np.random.default_rng(0))
    answers = models.predict(model, to_vectors(images)).argmax(axis=1)
    assert (answers == labels).mean() > 0.8
    assert epochs[-1][1] > 0.7
