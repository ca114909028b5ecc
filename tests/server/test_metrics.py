"""The metrics that are cheaper to feed than prometheus_client's own."""

import pytest
from prometheus_client import CollectorRegistry, Histogram

from digits_server.metrics import Counts, LazyHistogram


def test_histogram_counts_like_prometheus_own():
    """Whatever is observed, in whatever portions, gives the same buckets, count and sum as observing one by one."""
    bounds = (0.1, 0.5, 0.9)
    values = [0.0, 0.1, 0.10001, 0.5, 0.7, 0.9, 0.95, 3.0] * 1000  # more than are kept unsorted
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = LazyHistogram("h", "text", ["model"], bounds)
    ours.register(histogram)
    histogram.observer("m")(values[:3])
    histogram.observer("m")(values[3:-10])
    for value in values[-10:]:
        histogram.observer("m")((value,))
    single = Histogram("h", "text", ["model"], buckets=bounds, registry=theirs)
    for value in values:
        single.labels("m").observe(value)
    labels = [{"model": "m", "le": le} for le in ("0.1", "0.5", "0.9", "+Inf")]
    for name, label_sets in {"h_bucket": labels, "h_count": [{"model": "m"}], "h_sum": [{"model": "m"}]}.items():
        for label_set in label_sets:
            expected = theirs.get_sample_value(name, label_set)
            assert ours.get_sample_value(name, label_set) == pytest.approx(expected), (name, label_set)


def test_counts_are_a_counter():
    """Totals by label values come out as one counter family."""
    registry = CollectorRegistry()
    counts = Counts("c", "text", ["a", "b"])
    registry.register(counts)
    counts.values["x", "y"] += 2
    counts.values["x", "z"] += 1
    assert registry.get_sample_value("c_total", {"a": "x", "b": "y"}) == 2
    assert registry.get_sample_value("c_total", {"a": "x", "b": "z"}) == 1
