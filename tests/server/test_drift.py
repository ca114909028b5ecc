"""How far input is from training, on MNIST and on what is not."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from digits_server.inference.engine import Engine
from digits_server.inference.graph import Graph
from digits_server.metrics.definitions import INKS
from digits_server.metrics.drift import LEAST, WINDOW_S, Drift, Window, index, reference

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")


@pytest.fixture(scope="module", params=["digits-mlp", "digits-cnn"])
def engine(request):
    return Engine(Graph(ROOT / "models" / request.param / "1" / "model.onnx"))


def read(path):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def mnist():
    return read(ROOT / "tests/data/mnist/t10k-images-idx3-ubyte.gz")


def indices(engine, images):
    """Return the index of ink and that of classes for (n, 28, 28) images."""
    expected = reference(engine.metadata, INKS)
    predictions = engine.predict([images.reshape(-1, 784)])
    ink = np.bincount(np.searchsorted(INKS, predictions.ink), minlength=len(INKS) + 1)
    classes = np.bincount(predictions.digits, minlength=10)
    return index(expected["ink"], ink.tolist()), index(expected["class"], classes.tolist())


def test_quiet_on_mnist(engine, mnist):
    """Test images are no drift: not in the order of the file, writer by writer, nor a few drawn at random."""
    assert max(indices(engine, mnist)) < 0.03
    for start in range(0, len(mnist) - LEAST + 1, 500):
        assert max(indices(engine, mnist[start : start + LEAST])) < 0.1
    shuffled = np.random.default_rng(0).permutation(mnist)
    for start in range(0, len(mnist), 1000):
        assert max(indices(engine, shuffled[start : start + 1000])) < 0.05


def test_rings_on_what_is_no_mnist(engine, mnist):
    """Inverted, bolder, fainter and one-sided input is drift; which feature tells depends on what has changed."""
    ink, _ = indices(engine, 255 - mnist)
    assert ink > 1
    bolder = np.maximum(mnist, np.roll(mnist, 1, axis=2))
    assert indices(engine, bolder)[0] > 0.25
    assert indices(engine, mnist // 2)[0] > 1
    labels = engine.predict([mnist.reshape(-1, 784)]).digits
    assert indices(engine, mnist[labels < 7])[1] > 0.25


def test_rings_on_shifted_images(engine, mnist):
    """Images moved by six pixels have the same ink, but the model sees other digits in them."""
    ink, classes = indices(engine, np.roll(mnist, (6, 6), axis=(1, 2)))
    assert ink < 0.1
    assert classes > 0.25


@pytest.mark.skipif(not FASHION.exists(), reason=f"no {FASHION} (Debian: apt-get install dataset-fashion-mnist)")
def test_rings_on_fashion(engine):
    """Clothes are drift by ink and by class."""
    ink, classes = indices(engine, read(FASHION))
    assert ink > 0.25
    assert classes > 0.25


def test_chance_is_taken_off():
    """Samples of the reference itself show 0 on average, whatever their size."""
    rng = np.random.default_rng(0)
    shares = [0.1] * 10
    for size in (1000, 10_000):
        raw = [index(shares, rng.multinomial(size, shares).tolist()) for _ in range(300)]
        assert np.mean(raw) < 5 / size  # 9 / size without the correction; below 0 is cut


def test_rare_buckets_are_joined():
    """A bucket that hardly ever occurs in training does not ring by itself for a few images."""
    assert index([0.5, 0.4995, 0.0005], [500, 490, 10]) < 0.05
    assert index([0.0005, 0.4995, 0.5], [10, 490, 500]) < 0.05


def test_window_forgets():
    """What is older than the window no longer counts, provided that what is newer is enough."""
    window, now, total = Window(), 0.0, 0
    for _ in range(200):  # 20 images/s
        now, total = now + 10, total + 200
        latest = window.latest(now, [total, 0])
    assert WINDOW_S * 20 <= sum(latest) <= WINDOW_S * 20 * 1.1
    quiet = window.latest(now + 10 * WINDOW_S, [total, 10])
    assert LEAST <= sum(quiet) <= LEAST * 1.2
    assert len(window._past) < 50


def test_few_images_say_nothing():
    """Below the least number of images there is no index; it comes with the last one."""
    drift = Drift(lambda: 0.0)
    assert drift("m", "class", [0.5, 0.5], [LEAST / 2, LEAST / 2 - 1]) is None
    assert drift("m", "class", [0.5, 0.5], [LEAST / 2, LEAST / 2]) == 0


def test_change_shows_within_a_window():
    """After a change the index rises, and when it is undone it falls again."""
    now, counts, shown = 0.0, [0, 0], []
    drift = Drift(lambda: now)
    for period in ((50, 50), (100, 0), (50, 50)):
        for _ in range(100):
            now += 10
            counts = [count + more for count, more in zip(counts, period, strict=True)]
            value = drift("m", "class", [0.5, 0.5], counts)
        shown.append(value)
    assert shown[0] == pytest.approx(0, abs=0.01)
    assert shown[1] > 1
    assert shown[2] == pytest.approx(0, abs=0.01)


def test_packages_without_shares_have_no_reference():
    """A package that tells only the range of ink is served without drift."""
    assert reference({"digits.reference": json.dumps({"ink_histogram": {"edges": [0, 1]}})}, INKS) == {}
