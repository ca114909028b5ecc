"""Temperatures are found, and calibration is measured, on data where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from digits_export import calibration


@pytest.fixture
def honest():
    """Return probabilities and labels that were drawn from them: perfectly calibrated but for chance."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 10))
    probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    return probabilities, labels


def test_honest_probabilities_need_no_temperature(honest):
    """Where labels follow the probabilities, the temperature is 1 and the calibration error is chance."""
    assert calibration.fit_temperature(*honest) == pytest.approx(1, abs=0.03)
    assert calibration.expected_calibration_error(*honest) < 0.01


@pytest.mark.parametrize("boast", [0.4, 2.5])
def test_the_temperature_undoes_boasting_and_modesty(honest, boast):
    """Logits that were multiplied are divided again, and the calibration error falls."""
    probabilities, labels = honest
    twisted = calibration.soften(probabilities, 1 / boast)
    temperature = calibration.fit_temperature(twisted, labels)
    assert temperature == pytest.approx(boast, rel=0.03)
    before = calibration.expected_calibration_error(twisted, labels)
    assert calibration.expected_calibration_error(calibration.soften(twisted, temperature), labels) < before / 4


def test_softening_there_and_back_changes_nothing(honest):
    """The probabilities before temperature scaling can be had back from those after."""
    probabilities, _ = honest
    assert np.allclose(calibration.soften(calibration.soften(probabilities, 3), 1 / 3), probabilities, atol=1e-6)


def test_always_sure_and_half_right_is_half_wrong():
    """A model that is certain of everything and right every second time has an error of one half."""
    probabilities = np.tile(np.eye(10, dtype=np.float32)[0], (100, 1))
    labels = np.array([0, 1] * 50)
    assert calibration.expected_calibration_error(probabilities, labels) == pytest.approx(0.5)
    assert calibration.reliability(probabilities, labels) == [{"share": 1.0, "confidence": 1.0, "accuracy": 0.5}]


def test_a_temperature_that_validation_does_not_ask_for_is_left_out(honest):
    """Calibrated probabilities keep the temperature 1; overconfident ones get one that makes the error smaller."""
    probabilities, labels = honest
    assert calibration.helpful_temperature(probabilities, labels) == pytest.approx(1, abs=0.02)
    sharp = calibration.soften(probabilities, 0.5)
    assert 1.8 < calibration.helpful_temperature(sharp, labels) <= calibration.fit_temperature(sharp, labels)
