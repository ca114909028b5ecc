"""Keras networks from recipes, and the few operations on a finished one: its logits, its copies, its temperature."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from digits_export.data import CLASSES, Floats
from digits_export.recipe import Layer, Network

FILES = ("model.keras", "model.h5")
BATCH_NORM_MOMENTUM = 0.95  # averages over some 20 batches: Keras' 0.99 lags behind weights that still move fast


def build(network: Network) -> Any:
    """Return a `keras.Sequential` that answers (n, 10) softmax probabilities, not yet trained."""
    import keras  # noqa: PLC0415

    model = keras.Sequential([keras.Input(network.input_shape)], name="digits")
    for number, layer in enumerate(network.layers, 1):
        for part in _layers(layer, f"{layer.kind}_{number}"):
            model.add(part)
    model.add(keras.layers.Dense(CLASSES, activation="softmax", name="probabilities"))
    return model


def _layers(layer: Layer, name: str) -> list[Any]:
    """Return a recipe's layer as Keras layers, named so that the same network is the same to the letter every time."""
    from keras import layers, regularizers  # noqa: PLC0415

    if layer.kind == "flatten":
        return [layers.Flatten(name=name)]
    if layer.kind == "dropout":
        return [layers.Dropout(layer.rate, name=name)]
    if layer.kind == "dense":
        penalty = regularizers.L2(layer.l2) if layer.l2 else None
        return [layers.Dense(layer.units, "relu", kernel_regularizer=penalty, name=name)]
    return [
        layers.Conv2D(layer.units, layer.kernel, layer.stride, padding="same", use_bias=False, name=name),
        layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_normalisation"),
        layers.ReLU(name=f"{name}_relu"),
    ]


def copy(model: Any, network: Network) -> Any:
    """Return the same network with the same weights and nothing of its training (optimizer, averages, metrics)."""
    fresh = build(network)
    fresh.set_weights(model.get_weights())
    return fresh


def average(model: Any, other: Any, share: float) -> None:
    """Set the model's weights to a mean in which those of `other`, of the same network, have this share."""
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    model.set_weights([(1 - share) * own + share * theirs for own, theirs in pairs])


def predict(model: Any, vectors: Floats) -> Floats:
    """Return the probabilities (n, 10) of (n, 784) float32 vectors in [0, 1]."""
    shaped = vectors.reshape(-1, *model.input_shape[1:])
    blocks = [shaped[start : start + 1000] for start in range(0, len(shaped), 1000)]
    return np.concatenate([np.asarray(model(block, training=False)) for block in blocks])


def scale_logits(model: Any, factor: float) -> None:
    """Multiply the network's logits by `factor` for good, by folding it into the last layer's weights."""
    last = model.layers[-1]
    last.set_weights([weights * np.float32(factor) for weights in last.get_weights()])


def save(model: Any, folder: Path) -> None:
    """Write `model.keras` and `model.h5`, read both back and check that they answer as the model does.

    Raises:
        RuntimeError: A file that was read back answers differently.
    """
    import keras  # noqa: PLC0415

    logging.getLogger("absl").setLevel(logging.ERROR)  # HDF5 is wanted; Keras need not say each time that it is old
    for name in FILES:
        model.save(folder / name)
    sample = np.random.default_rng(0).random((16, 784), dtype=np.float32)
    for name in FILES:
        again = keras.models.load_model(folder / name, compile=False)
        if not np.array_equal(predict(again, sample), predict(model, sample)):
            raise RuntimeError(f"{folder / name} answers differently from the model it was written from")
