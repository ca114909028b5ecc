"""A real server process, asked over gRPC as anybody would ask it."""

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

TIMEOUT_S = 20


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return pb_grpc.DigitClassifierStub(channel)


def classify(stub, **fields):
    return stub.Classify(pb.ClassifyRequest(**fields), timeout=TIMEOUT_S)


def refusal(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value


def images(*digits):
    return np.stack([image_of(digit) for digit in digits])


def test_one_image(stub):
    """One image of 784 bytes is recognised; the answer names the model and says where the time went."""
    answer = classify(stub, pixels=image_of(7).tobytes())
    assert list(answer.digits) == [7]
    assert answer.confidences[0] > 0.99
    assert len(answer.probabilities) == 10
    assert sum(answer.probabilities) == pytest.approx(1)
    assert (answer.model, answer.version) == ("toy-b", "1")
    assert answer.timing.batch_size == 1
    assert answer.timing.inference_seconds > 0


def test_many_images_in_order(stub):
    """More rows than any batch holds come back as columns, in order."""
    digits = np.random.default_rng(0).integers(0, 10, 3000)
    answer = classify(stub, pixels=images(*digits).tobytes(), omit_probabilities=True)
    assert list(answer.digits) == digits.tolist()
    assert len(answer.probabilities) == 0


def test_floats_get_the_same_answer(stub):
    """The normalised vector gets the probabilities of its pixels, to 1e-5."""
    pixels = images(1, 2)
    bytes_ = classify(stub, pixels=pixels.tobytes())
    floats = classify(stub, vectors=(pixels / np.float32(255)).ravel().tolist())
    np.testing.assert_allclose(floats.probabilities, bytes_.probabilities, atol=1e-5)


def test_options(stub):
    """Top classes come best first, the request's id comes back, and odd images are flagged."""
    pixels = images(4, 4)
    pixels[1] = 0
    answer = classify(stub, pixels=pixels.tobytes(), top_k=3, request_id="order 66", omit_probabilities=True)
    assert answer.request_id == "order 66"
    assert list(answer.top_digits[:1]) == [4]
    assert len(answer.top_confidences) == 6
    assert answer.top_confidences[0] == answer.confidences[0]
    assert list(answer.quality_flags) == [
        0,
        pb.QUALITY_FLAG_BLANK | pb.QUALITY_FLAG_OUT_OF_RANGE | pb.QUALITY_FLAG_LOW_CONFIDENCE,
    ]


def test_a_request_with_a_name_has_its_story_in_the_trailers(stub):
    """Who names a request finds the name, the model and the timing in the trailers, also without reading the answer."""
    request = pb.ClassifyRequest(pixels=image_of(4).tobytes() * 2, request_id="order 66", model="toy-a", version="1")
    answer, call = stub.Classify.with_call(request, timeout=TIMEOUT_S)
    trailers = dict(call.trailing_metadata())
    assert trailers["x-request-id"] == answer.request_id == "order 66"
    assert (trailers["digits-model"], trailers["digits-version"]) == ("toy-a", "1")
    assert float(trailers["digits-queue-s"]) == pytest.approx(answer.timing.queue_seconds, abs=1e-6)
    assert float(trailers["digits-inference-s"]) == pytest.approx(answer.timing.inference_seconds, abs=1e-6)
    assert int(trailers["digits-batch-size"]) == answer.timing.batch_size == 2


def test_a_refusal_returns_the_name_of_the_request(stub):
    """An error names the request that it answers; a name that no header can hold is not returned."""
    error = refusal(lambda: classify(stub, pixels=b"x", request_id="order 66"))
    assert dict(error.trailing_metadata())["x-request-id"] == "order 66"
    error = refusal(lambda: classify(stub, pixels=image_of(4).tobytes(), request_id="order\r\nx: y"))
    assert "x-request-id" not in dict(error.trailing_metadata())


def test_a_request_without_a_name_has_no_trailers(stub):
    """Trailers cost time: nobody pays who has not asked for them."""
    _, call = stub.Classify.with_call(pb.ClassifyRequest(pixels=image_of(4).tobytes()), timeout=TIMEOUT_S)
    assert call.trailing_metadata() == ()


def test_models_and_versions(stub):
    """A request may name a model and pin a version; the latest is the default."""
    pixels = image_of(3).tobytes()
    assert list(classify(stub, pixels=pixels, model="toy-a").digits) == [4]
    assert list(classify(stub, pixels=pixels, model="toy-a", version="1").digits) == [3]


def test_list_models(stub):
    """The list tells every version, which one is the default, and what batching gains."""
    models = stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
    assert [(model.name, model.version, model.is_default) for model in models] == [
        ("toy-a", "1", False),
        ("toy-a", "2", False),
        ("toy-b", "1", True),
    ]
    assert all(model.state == pb.MODEL_STATE_SERVING and model.batching_gain >= 1 for model in models)
    assert (models[0].test_accuracy, models[0].dataset) == (0.5, "toys")
    assert models[0].labels == [str(digit) for digit in range(10)]
    assert [cost.batch_size for cost in models[0].batch_costs][:3] == [1, 2, 4]


@pytest.mark.parametrize(
    ("fields", "code", "details"),
    [
        ({"pixels": b"x" * 783}, "INVALID_ARGUMENT", "pixels: 783 bytes; allowed is a multiple of 784"),
        ({}, "INVALID_ARGUMENT", "pixels: no images"),
        ({"vectors": [float("nan")] * 784}, "INVALID_ARGUMENT", "vectors: element 0 is nan; allowed is 0 to 1"),
        ({"vectors": [0.5] * 783 + [1.5]}, "INVALID_ARGUMENT", "vectors: element 783 is 1.5; allowed is 0 to 1"),
        ({"pixels": b"x" * 784, "model": "nope"}, "NOT_FOUND", "model: 'nope' is not served; there are"),
        ({"pixels": b"x" * 784, "version": "../1"}, "NOT_FOUND", "version: toy-b has no version '../1'"),
        ({"pixels": b"x" * 784 * 6400}, "RESOURCE_EXHAUSTED", "larger than max"),
        ({"pixels": b"x" * 784 * 5000}, "INVALID_ARGUMENT", "images: 5000 in one request; allowed are up to 4096"),
    ],
    ids=["783 bytes", "empty", "nan", "out of range", "unknown model", "unknown version", "5 MB", "5000 images"],
)
def test_bad_requests_are_refused_and_the_next_good_one_answered(stub, fields, code, details):
    """Each fault has its status and a message that names it; the server goes on."""
    error = refusal(lambda: classify(stub, **fields))
    assert error.code().name == code
    assert details in error.details()
    assert list(classify(stub, pixels=image_of(5).tobytes()).digits) == [5]


def test_invalid_argument_names_the_field_for_programs(stub):
    """google.rpc.BadRequest tells the field without parsing text."""
    error = refusal(lambda: classify(stub, pixels=b"x"))
    violation = BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(violation)
    assert violation.field_violations[0].field == "pixels"


def test_garbage_is_refused(channel, stub):
    """Bytes that are no message are the caller's fault, not an unknown error."""
    raw = channel.unary_unary("/digits.v1.DigitClassifier/Classify")
    error = refusal(lambda: raw(b"\xff" * 100, timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "its 100 bytes are not a message" in error.details()
    assert list(classify(stub, pixels=image_of(5).tobytes()).digits) == [5]


def test_concurrent_callers_each_get_their_own(stub):
    """Hundreds of calls at once, good and bad mixed: each gets exactly its own answer, and some share batches."""
    digits = np.random.default_rng(2).integers(0, 10, 400)
    calls = [
        stub.Classify.future(
            pb.ClassifyRequest(pixels=image_of(digit).tobytes()[: 784 - (number % 10 == 0)]), timeout=TIMEOUT_S
        )
        for number, digit in enumerate(digits)
    ]
    sizes = []
    for number, (call, digit) in enumerate(zip(calls, digits, strict=True)):
        if number % 10 == 0:
            assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
        else:
            assert list(call.result().digits) == [digit]
            sizes.append(call.result().timing.batch_size)
    assert max(sizes) > 1


def test_health_of_server_service_and_models(channel):
    """Health is told for the server, the service and each model; of others nothing is known."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "digits.v1.DigitClassifier", "toy-a", "toy-b"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    error = refusal(lambda: health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=TIMEOUT_S))
    assert error.code() == grpc.StatusCode.NOT_FOUND


def test_health_has_no_list(channel):
    """The newest method of the health service is not served, and that is all that is said of it."""
    with pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=TIMEOUT_S)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_reflection_lists_the_services(channel):
    """Tools such as grpcurl find the services and their messages without the .proto."""
    reflection = ProtoReflectionDescriptorDatabase(channel)
    assert set(reflection.get_services()) == {
        "digits.v1.DigitClassifier",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
    assert "classifier.proto" in reflection.FindFileContainingSymbol("digits.v1.ClassifyRequest").name


def test_reflection_speaks_its_current_version(channel):
    """Tools that know v1 alone, as newer ones do, get the same answers there."""
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_S)
    assert "digits.v1.DigitClassifier" in {service.name for service in answer.list_services_response.service}
