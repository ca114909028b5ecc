"""Traces as a collector receives them: from an application's SDK, through the web gateway, to the server's batches."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from conftest import start_server
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import AsyncDigitClient, DigitClient, InvalidRequest
from digits_server.config import wants_traces

sys.path.insert(0, str(Path(__file__).parent))  # for the modules there that are not tests
sys.path.append(str(Path(__file__).parent.parent / "web"))  # at the end: it has a conftest.py of its own

from collector import Collector
from gateways import start_gateway

CLASSIFY = "digits.v1.DigitClassifier/Classify"
CALL = f"/{CLASSIFY}"  # as OpenTelemetry's instrumentation of grpc names a client's span


@pytest.fixture
def collector(monkeypatch):
    """A collector that every process started in the test sends its traces to, at once."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield collector
    collector.close()


@pytest.fixture
def server(collector, toy_models, tmp_path, transport):
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", f"--transport={transport}")
    yield server
    assert server.stop() == 0


@pytest.fixture
def application(collector, monkeypatch):
    """Tracing of an application that uses the SDK: this process."""
    provider = TracerProvider(resource=Resource({"service.name": "application"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    instrumentors = [GrpcInstrumentorClient(), GrpcAioInstrumentorClient()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    yield provider.get_tracer("application")
    for instrumentor in instrumentors:
        instrumentor.uninstrument()
    provider.shutdown()


def named(spans, name, **attributes):
    return [span for span in spans if span.name == name and attributes.items() <= vars(span).items()]


def test_one_trace_from_the_page_to_the_model(collector, server):
    """A request to the gateway is one trace: HTTP, the SDK's call, the server's RPC with its times."""
    gateway = start_gateway(f"--server={server.address}")
    caller = f"00-{'ab' * 16}-{'cd' * 8}-01"
    request = urllib.request.Request(
        f"{gateway.url}/api/classify",
        image_of(4).tobytes(),
        {"content-type": "application/octet-stream", "traceparent": caller},
    )
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["digit"] == 4
    assert gateway.stop() == 0
    names = (CLASSIFY, CALL, "POST /api/classify")
    spans = collector.wait_for(lambda spans: all(named(spans, name) for name in names))
    assert {span.trace for span in spans} == {"ab" * 16}
    (http,) = named(spans, "POST /api/classify")
    (sdk,), (rpc,) = named(spans, CALL, kind="CLIENT"), named(spans, CLASSIFY, kind="SERVER")
    assert [span.parent for span in (http, sdk, rpc)] == ["cd" * 8, http.id, sdk.id]
    assert (http.service, sdk.service, rpc.service) == ("digits-web", "digits-web", "digits-server")
    assert sdk.attributes["rpc.method"] == "Classify"
    times = {name: rpc.attributes.pop(name) for name in ("digits.queue_s", "digits.inference_s")}
    assert all(0 < seconds < (rpc.end - rpc.start) / 1e9 for seconds in times.values())
    assert rpc.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": CLASSIFY,
        "rpc.response.status_code": "OK",
        "digits.batch_size": 1,
    }


def test_coalesced_calls_are_one_span(collector, server, application):
    """Calls that the client sends as one are one span, in the trace of the first of the callers."""

    async def ask(client):
        with application.start_as_current_span("caller"):
            return (await client.classify(image_of(2))).digit

    async def ask_all():
        async with AsyncDigitClient(server.address, connections=1) as client:
            assert await asyncio.gather(*[ask(client) for _ in range(5)]) == [2] * 5

    asyncio.run(ask_all())
    spans = collector.wait_for(
        lambda spans: len(named(spans, "caller")) == 5 and named(spans, CLASSIFY) and named(spans, CALL)
    )
    (call,) = named(spans, CALL)
    assert call.parent in {span.id for span in named(spans, "caller")}
    assert [span.parent for span in named(spans, CLASSIFY)] == [call.id]


def test_streams_and_errors_are_spans(collector, server, application):
    """A stream is one span; a refused call's spans bear the status."""
    with DigitClient(server.address) as client, application.start_as_current_span("caller"):
        assert [answer.digit for answer in client.stream([image_of(1), image_of(2)])] == [1, 2]
        with pytest.raises(InvalidRequest):
            client._call("/digits.v1.DigitClassifier/Classify", b"\xff", 20)
    streamed = "digits.v1.DigitClassifier/ClassifyStream"
    names = (CLASSIFY, CALL, streamed, f"/{streamed}")
    spans = collector.wait_for(lambda spans: all(named(spans, name) for name in names))
    (rpc,) = named(spans, CLASSIFY, kind="SERVER")
    (call,) = named(spans, CALL, kind="CLIENT")
    assert rpc.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert (rpc.is_error, call.is_error) == (False, True)  # the caller's fault is no error of the server
    assert len(named(spans, streamed, kind="SERVER")) == 1


def test_asyncio_streams_are_spans(collector, server, application):
    """The asyncio client's stream is a span, with the server's below it."""

    async def ask():
        async with AsyncDigitClient(server.address) as client:
            return [answer.digit async for answer in client.stream([image_of(3)])]

    assert asyncio.run(ask()) == [3]
    name = "digits.v1.DigitClassifier/ClassifyStream"
    spans = collector.wait_for(lambda spans: named(spans, name) and named(spans, f"/{name}"))
    assert named(spans, name, kind="SERVER")[0].parent == named(spans, f"/{name}", kind="CLIENT")[0].id


def test_sampling_is_the_callers(collector, server):
    """Of a trace that its caller does not record, the server records nothing either; of one it does, all."""
    with grpc.insecure_channel(server.address) as channel:
        classify = pb_grpc.DigitClassifierStub(channel).Classify
        for flag in ("00", "01"):
            metadata = (("traceparent", f"00-{'ab' * 15}{flag}-{'cd' * 8}-{flag}"),)
            classify(pb.ClassifyRequest(pixels=image_of(3).tobytes()), metadata=metadata, timeout=20)
    spans = collector.wait_for(lambda spans: named(spans, CLASSIFY))
    assert {span.trace for span in spans} == {"ab" * 15 + "01"}


@pytest.mark.parametrize("module", ["digits_server.server", "digits_client", "digits_web.__main__"])
def test_opentelemetry_is_not_loaded_unasked(module):
    """Without a collector configured, nothing of OpenTelemetry is imported."""
    code = f"import sys, {module}; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_environment_turns_traces_on(variables, wanted):
    """An endpoint turns traces on, OpenTelemetry's own switches turn them off."""
    assert wants_traces(variables) is wanted


def test_an_unreachable_collector_does_no_harm(toy_models, tmp_path, monkeypatch):
    """Without anybody to take the traces calls are answered, and the server ends in time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = start_server(toy_models, tmp_path, "--default-model=toy-b")
    with DigitClient(server.address) as client:
        assert client.classify(image_of(4)).digit == 4
    assert server.stop() == 0
