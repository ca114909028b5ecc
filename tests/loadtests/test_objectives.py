"""Objectives: what passes, what does not, and how far above its own error a model may be wrong."""

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "loadtests"))  # as Locust does

import objectives


@pytest.mark.parametrize(
    ("name", "measured", "passed"),
    [
        ("min_rate", 100.0, True),
        ("min_rate", 99.9, False),
        ("max_rate", 100.0, True),
        ("max_rate", 100.1, False),
        ("min_rate", math.nan, False),
        ("max_rate", math.nan, False),
    ],
)
def test_limits(name, measured, passed):
    """A figure may be equal to its limit, not beyond it, and a figure that is no number never passes."""
    (verdict,) = objectives.judge({"unary": {name: 100}}, {"unary": {"rate": measured}})
    assert verdict.passed is passed


def test_missing_workload_fails():
    """A workload that made no calls does not pass by silence."""
    (verdict,) = objectives.judge({"unary": {"max_error_share": 0}}, {})
    assert not verdict.passed


@pytest.mark.parametrize(
    ("wrong", "images", "share", "sigmas"),
    [
        (200, 10_000, 0.02, 0.0),
        (214, 10_000, 0.02, 1.0),  # deviation: sqrt(10000 * 0.02 * 0.98) = 14
        (172, 10_000, 0.02, -2.0),
        (0, 100, 0.0, 0.0),
        (1, 100, 0.0, math.inf),  # a model without errors in the whole test set may make none
        (0, 0, 0.02, math.nan),
        (5, 100, math.nan, math.nan),  # the server did not tell its model's error
    ],
)
def test_sigmas_above(wrong, images, share, sigmas):
    """Wrong answers are counted in standard deviations above the model's own share."""
    assert objectives.sigmas_above(wrong, images, share) == pytest.approx(sigmas, nan_ok=True)


def test_misspelt_limit_is_refused(tmp_path):
    """A limit that is neither min_ nor max_ is an error, not an objective that is never checked."""
    file = tmp_path / "slo.toml"
    file.write_text("[unary]\np99_ms = 5\n")
    with pytest.raises(ValueError, match=r"\[unary\] p99_ms = 5: allowed are min_… and max_…"):
        objectives.read(file)


def test_shipped_objectives_name_measured_figures():
    """Each objective in slo.toml is about a figure that a run measures."""
    measured = {"rate", "p50_ms", "p95_ms", "p99_ms", "error_share", "wrong_share", "sigmas_above_model"}
    measured |= {"memory_growth_mb"}
    limits = objectives.read(Path(objectives.__file__).with_name("slo.toml"))
    workloads = {"unary", "batch-64", "stream", "oip", "sdk"}
    assert set(limits) == workloads | {"answers", "server"}
    assert {name[4:] for names in limits.values() for name in names} <= measured


def test_table_marks_what_failed():
    """The table has a line for each objective, with pass or FAIL at its end."""
    verdicts = objectives.judge({"unary": {"min_rate": 5, "max_p99_ms": 9}}, {"unary": {"rate": 7, "p99_ms": 10}})
    _, rate, p99 = objectives.table(verdicts).splitlines()
    assert rate.split() == ["unary", "min_rate", "5", "7", "pass"]
    assert p99.split() == ["unary", "max_p99_ms", "9", "10", "FAIL"]
