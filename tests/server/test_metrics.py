"""The histogram that takes whole arrays."""

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from digits_server.metrics import ArrayHistogram


def test_array_histogram_counts_like_prometheus_own():
    """Any array gives the same buckets, count and sum as observing its numbers one by one."""
    bounds = (0.1, 0.5, 0.9)
    values = np.array([0.0, 0.1, 0.10001, 0.5, 0.7, 0.9, 0.95, 3.0])
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    arrays = ArrayHistogram("h", "text", "model", bounds)
    ours.register(arrays)
    arrays.observe("m", values[:3])
    arrays.observe("m", values[3:])
    single = Histogram("h", "text", ["model"], buckets=bounds, registry=theirs)
    for value in values:
        single.labels("m").observe(value)
    labels = [{"model": "m", "le": le} for le in ("0.1", "0.5", "0.9", "+Inf")]
    for name, label_sets in {"h_bucket": labels, "h_count": [{"model": "m"}], "h_sum": [{"model": "m"}]}.items():
        for label_set in label_sets:
            assert ours.get_sample_value(name, label_set) == theirs.get_sample_value(name, label_set), (name, label_set)
