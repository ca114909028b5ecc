"""Writes HDF5 files as Keras 2 saves them, with its answers; run where `tf_keras` is installed, no test needs it.

pip install tf_keras && python make_keras2.py
"""

import gzip
from pathlib import Path

import numpy as np
import tf_keras as keras

HERE = Path(__file__).parent
MNIST = HERE.parents[1] / "data" / "mnist"
layers = keras.layers


def sequential() -> keras.Model:
    """Return the network that tutorials of those years begin with: images of 0 to 1, a softmax at the end."""
    return keras.Sequential(
        [
            layers.Flatten(input_shape=(28, 28)),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )


def functional() -> keras.Model:
    """Return a convolutional network without a softmax."""
    images = keras.Input((28, 28, 1), name="images")
    features = layers.Conv2D(4, 3, strides=2, use_bias=False)(images)
    features = layers.MaxPooling2D()(layers.Activation("relu")(layers.BatchNormalization()(features)))
    return keras.Model(images, layers.Dense(10)(layers.Dropout(0.2)(layers.Flatten()(features))))


def main() -> None:
    """Train both networks for a moment, and write file and answers of each."""
    pixels = gzip.decompress((MNIST / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(gzip.decompress((MNIST / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    for make, is_softmax in ((sequential, True), (functional, False)):
        keras.utils.set_random_seed(0)
        model = make()
        given = images.reshape(-1, *model.input_shape[1:]).astype(np.float32) / 255
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=not is_softmax))
        model.fit(given[1000:], labels[1000:], epochs=1, batch_size=64)
        model.save(HERE / f"keras2-{make.__name__}.h5")
        answers = model.predict(given[:50])
        np.savez_compressed(HERE / f"keras2-{make.__name__}.npz", inputs=images[:50].reshape(50, 784), answers=answers)


if __name__ == "__main__":
    main()
