"""What a scrape of a real server shows of drift and traces, that its labels are bounded, and that all is documented."""

import re
import urllib.request
from collections import defaultdict

import grpc
import numpy as np
import pytest
import yaml
from conftest import ROOT, mnist_test_set, start_server
from packages import image_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import DigitClient

MNIST, _ = mnist_test_set()


@pytest.fixture(scope="module")
def server(tmp_path_factory, transport):
    """A server of the shipped models with several workers that has seen traffic of several kinds."""
    server = start_server(
        ROOT / "models", tmp_path_factory.mktemp("metrics"), f"--transport={transport}", "--workers=2"
    )
    with DigitClient(server.address, model="digits-mlp") as client:
        client.classify_many(np.random.default_rng(0).permutation(MNIST))
    with DigitClient(server.address, model="digits-cnn") as client:
        client.classify_many(255 - MNIST[:1000])
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.DigitClassifierStub(channel)
        for number in range(20):  # whatever callers make up
            for request in (pb.ClassifyRequest(model=f"m{number}"), pb.ClassifyRequest(pixels=b"x" * number)):
                with pytest.raises(grpc.RpcError):
                    stub.Classify(request, timeout=20)
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/digits.v1.DigitClassifier/Made{number}")(b"", timeout=20)
    yield server
    assert server.stop() == 0


def scrape(server, accept="text/plain"):
    request = urllib.request.Request(f"{server.metrics_url}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(request, timeout=20) as page:
        return page.headers["content-type"], page.read().decode()


def test_images_are_counted_beside_the_training_images(server):
    """Over all workers each image counts once for each feature; what there was in training adds up to 1 for each."""
    sums = defaultdict(float)
    _, page = scrape(server)
    for family in parse(page):
        for sample in family.samples:
            sums[sample.name, sample.labels.get("model"), sample.labels.get("feature")] += sample.value
    for feature in ("ink", "class"):
        assert sums["digits_input_images_total", "digits-mlp", feature] == len(MNIST)
        assert sums["digits_input_images_total", "digits-cnn", feature] == 1000
        assert sums["digits_reference_share", "digits-mlp", feature] == pytest.approx(1, abs=0.001)


def test_labels_are_bounded(server):
    """No metric has a series for what callers make up; there are some hundreds of series in all."""
    _, page = scrape(server)
    samples = [sample for family in parse(page) for sample in family.samples]
    assert not [sample for sample in samples if re.search(r"\bm\d|Made", str(sample.labels))]
    assert len(samples) < 1000


def test_exemplars_lead_to_traces(toy_models, tmp_path, monkeypatch, transport):
    """A scraper that speaks OpenMetrics finds trace ids on the latency's buckets, another finds none."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody takes the traces; they are made
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", f"--transport={transport}")
    trace = "ab" * 16
    with grpc.insecure_channel(server.address) as channel:
        pb_grpc.DigitClassifierStub(channel).Classify(
            pb.ClassifyRequest(pixels=image_of(3).tobytes()),
            metadata=(("traceparent", f"00-{trace}-{'cd' * 8}-01"),),
            timeout=20,
        )
    kind, page = scrape(server, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    found = [sample.exemplar for family in parse_openmetrics(page) for sample in family.samples if sample.exemplar]
    assert [exemplar.labels for exemplar in found] == [{"trace_id": trace}]
    kind, page = scrape(server)
    assert kind.startswith("text/plain")
    assert "trace_id" not in page
    assert server.stop() == 0


def test_gauges_show_something(server):
    """No gauge is declared and never set."""
    _, page = scrape(server)
    assert [family.name for family in parse(page) if family.type == "gauge" and not family.samples] == []


def test_metrics_in_rules_exist(server):
    """Each metric that a rule reads is on the page, or recorded by another rule, or Prometheus' own."""
    _, page = scrape(server)
    there = {sample.name for family in parse(page) for sample in family.samples}
    there |= {f"{family.name}_total" for family in parse(page) if family.type == "counter"}
    (group,) = yaml.safe_load((ROOT / "deploy/prometheus/rules/digits.yml").read_text())["groups"]
    recorded = {rule["record"] for rule in group["rules"] if "record" in rule}
    text = "\n".join(re.sub(r"\{.*?\}|\bby \(.*?\)", "", rule["expr"]) for rule in group["rules"])
    read = set(re.findall(r"\b(?:(?:digits|grpc|process)_\w+|digits:[\w:]+|up)\b", text))
    assert read <= there | recorded | {"up"}
    assert recorded <= read, "recorded for nobody"


def test_metrics_are_documented(server):
    """The catalogue in docs/observability.md has every metric of the page, and no other."""
    _, page = scrape(server)
    families = {f"{family.name}_total" if family.type == "counter" else family.name for family in parse(page)}
    text = (ROOT / "docs/observability.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)) == families
