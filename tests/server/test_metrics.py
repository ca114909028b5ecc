"""Metrics: arrays are counted as prometheus_client counts numbers, and those of several workers add up."""

import pickle
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from digits_server.inference.request import BatchReport
from digits_server.metrics.aggregate import Aggregate
from digits_server.metrics.arrays import ArrayCounter, ArrayHistogram
from digits_server.metrics.definitions import INKS, Metrics, reference

BOUNDS = (0.1, 0.5, 0.9)


def test_array_histogram_counts_like_prometheus_own():
    """Observed many at a time, numbers give the buckets, count and sum that prometheus_client gives one by one."""
    values = np.array([0.0, 0.1, 0.10001, 0.5, 0.7, 0.9, 0.95, 3.0] * 10, np.float32)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    many = ArrayHistogram("h", "text", ["a"], ours, BOUNDS).labels("x")
    for some in (values[:7], values[7:], values[:0]):
        many.observe(some)
    single = Histogram("h", "text", ["a"], buckets=BOUNDS, registry=theirs).labels("x")
    for value in values:
        single.observe(round(float(value), 6))
    (one,), (other,) = ours.collect(), theirs.collect()
    assert [(s.name, s.labels) for s in one.samples] == [(s.name, s.labels) for s in other.samples]
    assert [s.value for s in one.samples] == pytest.approx([s.value for s in other.samples])


def test_array_counter_has_a_series_for_each_bucket():
    """Indices are counted under their buckets' names; versions with other names count beside each other."""
    registry = CollectorRegistry()
    counter = ArrayCounter("c", "text", ["model", "label"], registry)
    counter.labels("m", buckets=["a", "b"]).count(np.array([1, 1, 0], np.uint8))
    counter.labels("m", buckets=["b", "c"]).count(np.array([0], np.uint16))
    values = {label: registry.get_sample_value("c_total", {"model": "m", "label": label}) for label in "abc"}
    assert values == {"a": 1, "b": 3, "c": 0}


def worker(*, count=0, depth=0, expiry=0, seconds=(), trace=None):
    """Return what a worker reports, as it comes out of the pipe."""
    registry = CollectorRegistry()
    Counter("c", "text", ["a"], registry=registry).labels("x").inc(count)
    Gauge("digits_queue_depth", "text", registry=registry).set(depth)
    Gauge("digits_model_info", "text", registry=registry).set(1)
    Gauge("digits_certificate_expiry_timestamp_seconds", "text", registry=registry).set(expiry)
    histogram = Histogram("h", "text", buckets=BOUNDS, registry=registry)
    for value in seconds:
        histogram.observe(value, trace and {"trace_id": trace})
    return pickle.loads(pickle.dumps(list(registry.collect())))


@pytest.fixture
def aggregate():
    """Two workers' numbers, of which the first reports twice."""
    aggregate = Aggregate()
    aggregate.update(1, worker(count=1))
    aggregate.update(1, worker(count=2, depth=5, expiry=30, seconds=[0.3], trace="old"))
    aggregate.update(2, worker(count=3, depth=6, expiry=20, seconds=[0.3, 0.05], trace="new"))
    return aggregate


@pytest.fixture
def page(aggregate):
    registry = CollectorRegistry()
    registry.register(aggregate)
    return registry


def test_workers_add_up(page):
    """Counters, histograms and what waits are summed, by the last report; other gauges become the one that matters."""
    assert page.get_sample_value("c_total", {"a": "x"}) == 5
    assert page.get_sample_value("h_bucket", {"le": "0.1"}) == 1
    assert page.get_sample_value("h_bucket", {"le": "0.5"}) == 3
    assert page.get_sample_value("h_count") == 3
    assert page.get_sample_value("h_sum") == pytest.approx(0.65)
    assert page.get_sample_value("digits_queue_depth") == 11
    assert page.get_sample_value("digits_model_info") == 1
    assert page.get_sample_value("digits_certificate_expiry_timestamp_seconds") == 20


def test_what_the_dead_have_counted_stays(aggregate, page):
    """Counters and histograms of the dead and the living add up; gauges are those of the living alone."""
    aggregate.retire(1)
    aggregate.update(3, worker(count=10, depth=1, expiry=40))
    assert page.get_sample_value("c_total", {"a": "x"}) == 15
    assert page.get_sample_value("h_count") == 3
    assert page.get_sample_value("digits_queue_depth") == 7
    aggregate.retire(2)
    aggregate.retire(3)
    assert page.get_sample_value("c_total", {"a": "x"}) == 15
    assert page.get_sample_value("digits_queue_depth") is None


def test_worker_that_never_reported_leaves_nothing(aggregate, page):
    """One that dies before its first report changes nothing."""
    aggregate.retire(4)
    assert page.get_sample_value("c_total", {"a": "x"}) == 5


def test_scrape_shows_what_workers_say_now():
    """Workers are asked at each scrape; of one that does not answer, as of one that ends, the last report stays."""
    aggregate = Aggregate(lambda: threading.Thread(target=answer).start() or [1, 2])

    def answer():
        aggregate.update(1, worker(count=5), was_asked=True)
        aggregate.retire(2)

    aggregate.update(1, worker(count=1))
    aggregate.update(2, worker(count=2))
    registry = CollectorRegistry()
    registry.register(aggregate)
    assert registry.get_sample_value("c_total", {"a": "x"}) == 7


def test_exemplars_lead_to_traces(page):
    """A bucket shows the trace of its last observation, of whichever worker."""
    text = generate_latest(page).decode()
    assert 'h_bucket{le="0.5"} 3.0 # {trace_id="new"} 0.3 ' in text
    assert "old" not in text


def samples(metrics):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics.collect()
        for sample in metric.samples
    }


def test_rpcs_are_counted_by_status_and_timed():
    """Each RPC is in one counter, by its status, and in one histogram, whatever its status; its trace is kept."""
    metrics = Metrics()
    done = metrics.rpc("unary", "s", "m")
    for _ in range(3):
        done(grpc.StatusCode.OK, 0.004)
    done(grpc.StatusCode.NOT_FOUND, 0.0001, trace_id=b"\xab" * 16)
    found = samples(metrics)
    assert found["grpc_server_handled_total", "unary", "s", "m", "OK"] == 3
    assert found["grpc_server_handled_total", "unary", "s", "m", "NOT_FOUND"] == 1
    assert found["grpc_server_handling_seconds_count", "unary", "s", "m"] == 4
    assert found["grpc_server_handling_seconds_bucket", "unary", "s", "m", "0.003"] == 1
    (exemplar,) = [s.exemplar for metric in metrics.collect() for s in metric.samples if s.exemplar]
    assert exemplar.labels == {"trace_id": "ab" * 16}


def package(metadata=None):
    cost = SimpleNamespace(batching_gain=3.0)
    return SimpleNamespace(
        name="m", version="1", labels=("a", "b"), cost=cost, engine=SimpleNamespace(metadata=metadata or {})
    )


def test_served_version_is_shown_until_it_is_retired():
    """Its gauges are there while it serves; how many images wait is asked when somebody wants to know."""
    metrics, waiting = Metrics(), [1]
    retired = metrics.serving(package(), lambda: len(waiting))
    waiting.append(2)
    found = samples(metrics)
    assert found["digits_queue_depth", "m", "1"] == 2
    assert found["digits_model_info", "m", "1"] == 1
    assert found["digits_batching_gain", "m", "1"] == 3
    retired()
    assert not [key for key in samples(metrics) if key[1:] == ("m", "1")]


def test_batches_are_counted_by_what_released_them():
    """A run is counted and timed once, its callers' waits one by one."""
    metrics = Metrics()
    observe = metrics.batch("m")
    observe(BatchReport(size=5, queue_s=[0.001, 0.2], inference_s=0.01, release="full", unwanted=2))
    found = samples(metrics)
    assert found["digits_batches_total", "m", "full"] == 1
    assert found["digits_batch_size_sum", "m"] == 5
    assert found["digits_inference_seconds_count", "m"] == 1
    assert found["digits_queue_seconds_count", "m"] == 2
    assert found["digits_cancelled_images_total", "m"] == 2


def test_answers_are_counted_beside_the_training_images():
    """Images are counted by answer, by ink and by class, where a package says how many there were in training."""
    metrics = Metrics()
    shares = '{"ink_histogram": {"edges": [0.0, 0.2], "shares": [1.0]}, "class_shares": [0.25, 0.75]}'
    observe = metrics.predicted(package({"digits.reference": shares}))
    ones = np.ones(3, np.float32)
    observe(SimpleNamespace(digits=np.array([0, 1, 1], np.uint8), ink=ones * 0.055, confidences=ones * 0.75))
    found = samples(metrics)
    assert found["digits_predictions_total", "m", "b"] == 2
    assert found["digits_input_images_total", "m", "class", "a"] == 1
    assert found["digits_input_images_total", "m", "ink", "0.06"] == 3
    assert found["digits_confidence_bucket", "m", "0.8"] == 3
    assert found["digits_reference_share", "m", "class", "b"] == 0.75
    assert found["digits_reference_share", "m", "ink", "0.06"] == pytest.approx(0.05)
    assert sum(share for key, share in found.items() if key[2:3] == ("ink",) and "share" in key[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"digits.reference": '{"ink_histogram": {"edges": [0, 1]}}'},
        {"digits.reference": '{"ink_histogram": null, "class_shares": [1]}'},
        {"digits.reference": '{"ink_histogram": {"edges": [0, 1], "shares": null}, "class_shares": [1]}'},
        {"digits.reference": '{"ink_histogram": {"edges": [0, 1], "shares": [1]}, "class_shares": null}'},
    ],
)
def test_packages_without_shares_have_no_reference(metadata):
    """A package that tells nothing of its training images, or only the range of ink, is counted without drift."""
    assert reference(metadata, "ab") == {}
    metrics = Metrics()
    metrics.predicted(package(metadata))
    assert len([key for key in samples(metrics) if key[0] == "digits_input_images_total"]) == len(INKS) + 1 + 2
