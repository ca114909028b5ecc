"""Training: a pure function of a recipe, the images and a folder; resumes from its checkpoint after a break."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from digits_export import models, scribbles, strokes
from digits_export.data import CLASSES, NO_DIGIT, Mnist, Split
from digits_export.pipeline import Pipeline
from digits_export.recipe import Fit, Recipe, RecipeError, load

WARMUP_START = 0.01  # share of the full learning rate at the first step


@dataclass
class History:
    """What each epoch measured, and how long training took over all its runs."""

    curves: dict[str, list[float]] = field(default_factory=dict)
    """`loss`, `accuracy`, `val_loss`, `val_accuracy` by epoch."""
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return len(self.curves.get("loss", []))


def set_threads(count: int) -> None:
    """Limit TensorFlow to so many threads; to be called before anything is computed."""
    import tensorflow as tf  # noqa: PLC0415, TID251

    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)


def train(
    recipe: Recipe,
    data: Mnist,
    folder: Path,
    *,
    workers: int = 1,
    quiet: bool = False,
    after_epoch: Callable[[int, float], None] = lambda _epoch, _validation: None,
) -> tuple[Any, History]:
    """Train a network as the recipe says and return it with its history.

    Each epoch's end is kept in `folder`; the same call after an interruption goes on from there and ends with the
    same weights.

    Args:
        recipe: What to train, and how.
        data: The images; those for validation are split off here.
        folder: Holds the checkpoint while training, then the network as trained (not yet calibrated) and its history.
        workers: Threads that deform images.
        quiet: Whether to leave out the progress bar.
        after_epoch: Told each epoch's number and validation accuracy; ends the training by raising.

    Raises:
        RecipeError: The folder holds what another recipe has trained, or `start` names a recipe of another network.
    """
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415, TID251
    from tqdm.keras import TqdmCallback  # noqa: PLC0415

    start = _start(recipe, data, folder, workers, quiet=quiet)
    keras.utils.set_random_seed(recipe.seed)
    tf.config.experimental.enable_op_determinism()
    learn, validate = data.held_out(recipe.fit.validation_share)
    pipeline = Pipeline(_with_foreign(learn, recipe), recipe, workers)
    model = models.build(recipe.network)
    if start is not None:
        model.set_weights(start.get_weights())
    kind = "sparse_categorical" if recipe.fit.integer_labels else "categorical"
    model.compile(_optimizer(recipe.fit, pipeline.steps), f"{kind}_crossentropy", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    checkpoint = folder / "checkpoint.npz"
    history = _restore(model, recipe, checkpoint)

    shape = recipe.network.input_shape
    labels = validate.labels if recipe.fit.integer_labels else keras.utils.to_categorical(validate.labels, CLASSES)
    judge = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: after_epoch(epoch, logs["val_accuracy"]))
    bar = TqdmCallback(recipe.fit.epochs, verbose=0, desc=recipe.name, disable=quiet)
    callbacks = [_checkpoint(checkpoint, recipe, history), bar, judge]
    if recipe.fit.averaging:
        callbacks.append(keras.callbacks.SwapEMAWeights())  # validates the averaged weights, which are those that ship
    model.fit(
        ((vectors.reshape(-1, *shape), answers) for vectors, answers in pipeline.batches(history.epochs)),
        epochs=recipe.fit.epochs,
        initial_epoch=history.epochs,
        steps_per_epoch=pipeline.steps,
        validation_data=(validate.vectors.reshape(-1, *shape), labels),
        validation_batch_size=1000,
        callbacks=callbacks,
        shuffle=False,  # the pipeline shuffles
        verbose=0,
    )
    trained = models.copy(model, recipe.network)
    if start is not None:
        models.average(trained, start, recipe.kept)
    trained.save(folder / "trained.keras")
    (folder / "history.json").write_text(json.dumps(asdict(history) | {"recipe": _lineage(recipe)}))
    checkpoint.unlink()
    return trained, history


def read_trained(folder: Path) -> tuple[Any, History]:
    """Return what `train` left in its folder, so that a package can be made again without training again.

    Raises:
        FileNotFoundError: No training has ended there.
    """
    import keras  # noqa: PLC0415

    told = json.loads((folder / "history.json").read_text())
    history = History(told["curves"], told["seconds"])
    return keras.models.load_model(folder / "trained.keras", compile=False), history


def _lineage(recipe: Recipe) -> str:
    """Return all that decides the weights: the recipe, and those it starts from, whose files may change."""
    return repr(recipe) + (_lineage(load(recipe.start)) if recipe.start else "")


def _start(recipe: Recipe, data: Mnist, folder: Path, workers: int, *, quiet: bool) -> Any:
    """Return the network that the training begins with, or nothing; it is trained in a folder within, once."""
    if not recipe.start:
        return None
    first = load(recipe.start)
    if first.network != recipe.network:
        raise RecipeError(f"start is {recipe.start!r}, allowed: a recipe of the same network")
    inner = folder / first.name
    if (inner / "trained.keras").is_file():
        if json.loads((inner / "history.json").read_text()).get("recipe") != _lineage(first):
            raise RecipeError(f"{inner} was trained by another recipe than {first.name!r} is now: remove it")
        return read_trained(inner)[0]
    return train(first, data, inner, workers=workers, quiet=quiet)[0]


def _with_foreign(learn: Split, recipe: Recipe) -> Split:
    """Return the images to learn from with those that the recipe has drawn by code."""
    parts, foreign = [learn], recipe.foreign
    if foreign.drawn:
        parts.append(Split(*strokes.draw(foreign.drawn, np.random.default_rng((recipe.seed, 2)))))
    if foreign.scribbled:
        images = scribbles.draw(foreign.scribbled, np.random.default_rng((recipe.seed, 3)))
        parts.append(Split(images, np.full(len(images), NO_DIGIT)))
    if foreign.touching:
        images = scribbles.touching(learn.images, foreign.touching, np.random.default_rng((recipe.seed, 4)))
        parts.append(Split(images, np.full(len(images), NO_DIGIT)))
    return Split(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def _optimizer(fit: Fit, steps: int) -> Any:
    """Return Adam on the recipe's schedule; `steps` is an epoch's number of batches."""
    from keras import optimizers  # noqa: PLC0415

    rate: Any = fit.learning_rate
    if fit.cosine:
        warmup = round(fit.warmup_epochs * steps)
        start = fit.learning_rate * WARMUP_START if warmup else fit.learning_rate
        rate = optimizers.schedules.CosineDecay(
            start, fit.epochs * steps - warmup, warmup_target=fit.learning_rate if warmup else None, warmup_steps=warmup
        )
    averages = {"use_ema": True, "ema_momentum": fit.averaging} if fit.averaging else {}
    return optimizers.Adam(rate, **averages)


def _state(model: Any) -> list[Any]:
    """Return all that training changes: weights, moving averages, dropout's generators, the optimizer's memory."""
    return [*model.variables, *model.optimizer.variables]


def _restore(model: Any, recipe: Recipe, path: Path) -> History:
    """Bring the model to where an interrupted training left it, if one did."""
    if not path.is_file():
        return History()
    with np.load(path) as stored:
        if str(stored["recipe"]) != _lineage(recipe):
            raise RecipeError(f"{path} is the checkpoint of another recipe: remove it, or train in another folder")
        for number, variable in enumerate(_state(model)):
            variable.assign(stored[str(number)])
        return History(**json.loads(str(stored["history"])))


def _checkpoint(path: Path, recipe: Recipe, history: History) -> Any:
    """Return the callback that extends the history and keeps each epoch's end on disk."""
    from keras import callbacks  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)

    class Checkpoint(callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, _logs: Any = None) -> None:
            self.mark = time.perf_counter()

        def on_epoch_end(self, _epoch: int, logs: Any = None) -> None:
            for name, value in logs.items():
                history.curves.setdefault(name, []).append(round(float(value), 6))
            now = time.perf_counter()
            history.seconds, self.mark = history.seconds + now - self.mark, now
            arrays = {str(number): variable.numpy() for number, variable in enumerate(_state(self.model))}
            part = path.with_suffix(".part.npz")
            np.savez(part, recipe=_lineage(recipe), history=json.dumps(asdict(history)), **arrays)
            part.replace(path)  # in one step: a break leaves the last epoch's file or this one's

    return Checkpoint()
