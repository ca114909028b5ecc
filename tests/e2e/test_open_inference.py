"""The Open Inference Protocol at a real server: what it accepts, and what it says to everything else."""

import grpc
import numpy as np
import pytest
from conftest import start_server, wait_until
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from packages import image_of

from digits.v1 import classifier_pb2, classifier_pb2_grpc
from open_inference.v2 import inference_pb2 as pb
from open_inference.v2 import inference_pb2_grpc as pb_grpc

TIMEOUT_S = 20
PIXELS = np.stack([image_of(3), image_of(8)])
CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents"}
MAX = 2**63 - 1


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def tensor(datatype="UINT8", shape=(1, 784), name="vectors", **contents):
    filled = pb.InferTensorContents(**contents) if contents else None
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, contents=filled)


def request(*inputs, raw=(), outputs=(), model="toy-b", **fields):
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs]
    return pb.ModelInferRequest(model_name=model, inputs=inputs, outputs=wanted, raw_input_contents=raw, **fields)


def infer(stub, *args, **kwargs):
    return stub.ModelInfer(request(*args, **kwargs), timeout=TIMEOUT_S)


def columns(answer):
    """Return the outputs of an answer as arrays, raw or typed."""
    kinds = {"FP32": np.dtype("<f4"), "UINT8": np.dtype(np.uint8)}
    found = {}
    for at, output in enumerate(answer.outputs):
        if answer.raw_output_contents:
            values = np.frombuffer(answer.raw_output_contents[at], kinds[output.datatype])
        else:
            values = np.array(getattr(output.contents, CONTENTS[output.datatype]), kinds[output.datatype])
        found[output.name] = values.reshape(output.shape)
    return found


@pytest.mark.parametrize("image", [(784,), (28, 28), (28, 28, 1)], ids=str)
@pytest.mark.parametrize("datatype", CONTENTS)
@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
def test_every_form_of_the_input_is_answered_in_its_own(stub, image, datatype, is_raw):
    """Bytes or floats, flat or square, raw or typed: the same two digits; raw is answered raw."""
    values = PIXELS if datatype == "UINT8" else PIXELS / np.float32(255)
    if is_raw:
        answer = infer(stub, tensor(datatype, (2, *image)), raw=[values.tobytes()])
    else:
        answer = infer(stub, tensor(datatype, (2, *image), **{CONTENTS[datatype]: values.ravel().tolist()}))
    assert bool(answer.raw_output_contents) == is_raw
    assert any(output.HasField("contents") for output in answer.outputs) != is_raw
    found = columns(answer)
    assert {name: values.shape for name, values in found.items()} == {
        "probabilities": (2, 10),
        "digits": (2,),
        "confidences": (2,),
        "quality_flags": (2,),
    }
    assert found["digits"].tolist() == [3, 8]
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found["probabilities"].max(axis=1), found["confidences"])


def test_outputs_asked_for_come_in_that_order(stub):
    """Only the outputs that are named come, in the order of their names."""
    answer = infer(stub, tensor(), raw=[PIXELS[:1].tobytes()], outputs=["quality_flags", "digits"])
    assert list(columns(answer)) == ["quality_flags", "digits"]


def test_answer_names_request_model_and_time(stub):
    """The id is echoed, model and version are named, and the parameters tell where the time went."""
    answer = infer(stub, tensor(), raw=[PIXELS[:1].tobytes()], id="order 66", model="toy-a", model_version="1")
    assert (answer.id, answer.model_name, answer.model_version) == ("order 66", "toy-a", "1")
    assert answer.parameters["batch_size"].int64_param == 1
    assert answer.parameters["inference_seconds"].double_param > 0
    assert answer.parameters["queue_seconds"].double_param >= 0


def test_id_and_time_are_in_the_trailers_too(stub):
    """Who gives an id finds it, the model and the timing in the trailers, as with `Classify`; errors return it too."""
    answer, call = stub.ModelInfer.with_call(request(tensor(), raw=[GOOD], id="order 66"), timeout=TIMEOUT_S)
    trailers = dict(call.trailing_metadata())
    assert [trailers[name] for name in ("x-request-id", "digits-model", "digits-version")] == ["order 66", "toy-b", "1"]
    assert float(trailers["digits-queue-s"]) == pytest.approx(answer.parameters["queue_seconds"].double_param, abs=1e-6)
    with pytest.raises(grpc.RpcError) as error:
        infer(stub, id="order 67")
    assert dict(error.value.trailing_metadata())["x-request-id"] == "order 67"


def test_unknown_parameters_are_ignored(stub):
    """Options of other servers, on the request, its input and its output, change nothing."""
    message = request(tensor(), raw=[PIXELS[:1].tobytes()], outputs=["digits"])
    for owner in (message, message.inputs[0], message.outputs[0]):
        owner.parameters["priority"].int64_param = 7
    assert columns(stub.ModelInfer(message, timeout=TIMEOUT_S))["digits"].tolist() == [3]


def test_more_images_than_a_batch_holds(stub):
    """Three thousand images in one call come back in order."""
    digits = np.random.default_rng(0).integers(0, 10, 3000)
    pixels = np.stack([image_of(digit) for digit in range(10)])[digits]
    answer = infer(stub, tensor(shape=(3000, 28, 28)), raw=[pixels.tobytes()], outputs=["digits"])
    assert columns(answer)["digits"].tolist() == digits.tolist()


GOOD = PIXELS[:1].tobytes()
ZEROS = [0] * 784
REFUSALS = {
    "no input": (request(), "inputs: expected 'vectors' once, got it 0 times"),
    "input twice": (request(tensor(), tensor(), raw=[GOOD, GOOD]), "inputs: expected 'vectors' once, got it 2 times"),
    "input too many": (
        request(tensor(), tensor(name="mask"), raw=[GOOD, GOOD]),
        "inputs[1].name: is 'mask'; allowed is 'vectors'",
    ),
    "nameless input": (request(tensor(name=""), raw=[GOOD]), "inputs[0].name: is ''; allowed is 'vectors'"),
    "other datatype": (
        request(tensor("FP64", fp64_contents=ZEROS)),
        "inputs[0].datatype: is 'FP64'; allowed are UINT8 and FP32",
    ),
    "no datatype": (request(tensor(""), raw=[GOOD]), "inputs[0].datatype: is ''; allowed are UINT8 and FP32"),
    "783 pixels": (
        request(tensor(shape=(1, 783)), raw=[GOOD[:783]]),
        "inputs[0].shape: expected one of [n, 784], [n, 28, 28], [n, 28, 28, 1], n from 1, got [1, 783]",
    ),
    "no batch": (request(tensor(shape=(784,)), raw=[GOOD]), "n from 1, got [784]"),
    "no shape": (request(tensor(shape=()), raw=[GOOD]), "n from 1, got []"),
    "empty batch": (request(tensor(shape=(0, 784)), raw=[b""]), "n from 1, got [0, 784]"),
    "negative batch": (request(tensor(shape=(-1, 784)), raw=[GOOD]), "n from 1, got [-1, 784]"),
    "negative sides": (request(tensor(shape=(1, -28, -28)), raw=[GOOD]), "n from 1, got [1, -28, -28]"),
    "overflowing": (
        request(tensor(shape=(MAX, 784)), raw=[GOOD]),
        f"raw_input_contents[0]: expected {MAX * 784} bytes for UINT8 [{MAX}, 784], got 784",
    ),
    "a thousand dimensions": (request(tensor(shape=[1] * 1000), raw=[GOOD]), "got [1, 1, 1, 1, 1, 1, ...]"),
    "too few bytes": (
        request(tensor(), raw=[GOOD[:-1]]),
        "raw_input_contents[0]: expected 784 bytes for UINT8 [1, 784], got 783",
    ),
    "too many bytes": (
        request(tensor(), raw=[GOOD + b"\0"]),
        "raw_input_contents[0]: expected 784 bytes for UINT8 [1, 784], got 785",
    ),
    "bytes as floats": (
        request(tensor("FP32"), raw=[GOOD]),
        "raw_input_contents[0]: expected 3136 bytes for FP32 [1, 784], got 784",
    ),
    "more raw contents than inputs": (
        request(tensor(), raw=[GOOD, GOOD]),
        "raw_input_contents: expected 1, one for each input, got 2",
    ),
    "raw and typed": (
        request(tensor(uint_contents=ZEROS), raw=[GOOD]),
        "inputs[0].contents: given beside raw_input_contents; give one of the two",
    ),
    "no contents": (request(tensor()), "inputs[0].contents.uint_contents: expected 784 elements for [1, 784], got 0"),
    "too few elements": (
        request(tensor("FP32", fp32_contents=[0.5])),
        "inputs[0].contents.fp32_contents: expected 784 elements for [1, 784], got 1",
    ),
    "too many elements": (
        request(tensor(uint_contents=[*ZEROS, 0])),
        "inputs[0].contents.uint_contents: expected 784 elements for [1, 784], got 785",
    ),
    "contents of another type": (
        request(tensor(fp32_contents=ZEROS)),
        "inputs[0].contents.fp32_contents: given for UINT8; allowed is uint_contents",
    ),
    "contents of two types": (
        request(tensor(uint_contents=ZEROS, int_contents=ZEROS)),
        "inputs[0].contents.int_contents: given for UINT8; allowed is uint_contents",
    ),
    "no byte": (
        request(tensor(uint_contents=[*ZEROS[1:], 2**32 - 1])),
        "inputs[0].contents.uint_contents: element 783 is 4294967295; allowed is 0 to 255",
    ),
    "just no byte": (
        request(tensor(uint_contents=[256, *ZEROS[1:]])),
        "inputs[0].contents.uint_contents: element 0 is 256; allowed is 0 to 255",
    ),
    "NaN": (
        request(tensor("FP32", fp32_contents=[float("nan"), *ZEROS[1:]])),
        "inputs[0]: element 0 is nan; allowed is 0 to 1",
    ),
    "raw infinity": (
        request(tensor("FP32"), raw=[np.full(784, np.inf, np.float32).tobytes()]),
        "inputs[0]: element 0 is inf; allowed is 0 to 1",
    ),
    "unknown output": (
        request(tensor(), raw=[GOOD], outputs=["digits", "logits"]),
        "outputs[1].name: is 'logits'; allowed are probabilities, digits, confidences, quality_flags",
    ),
    "output twice": (
        request(tensor(), raw=[GOOD], outputs=["digits", "digits"]),
        "outputs[1].name: is 'digits' for the second time",
    ),
    "no model": (request(tensor(), raw=[GOOD], model=""), "model_name: is empty; allowed are ['toy-a', 'toy-b']"),
    "long id": (request(tensor(), raw=[GOOD], id="x" * 129), "129 characters; allowed are up to 128 printable ASCII"),
    "forging id": (request(tensor(), raw=[GOOD], id="a\n{}"), r"id: is 'a\n{}', 4 characters; allowed are up to 128"),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_faults_are_named(stub, fault):
    """Each fault is INVALID_ARGUMENT, names field, value and what is allowed, for programs too; the next call works."""
    message, words = REFUSALS[fault]
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(message, timeout=TIMEOUT_S)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.value.details()
    violation = BadRequest()
    assert rpc_status.from_call(error.value).details[0].Unpack(violation)
    assert error.value.details().startswith(violation.field_violations[0].field)
    assert columns(infer(stub, tensor(), raw=[GOOD]))["digits"].tolist() == [3]


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("other", "", "model: 'other' is not served; there are ['toy-a', 'toy-b']"),
        ("../toy-b", "", "model: '../toy-b' is not served"),
        ("toy-b/1", "", "model: 'toy-b/1' is not served"),
        ("toy-b\0", "", r"model: 'toy-b\x00' is not served"),
        ("x" * 1_000_000, "", "...xxx"),
        ("toy-b", "2", "version: toy-b has no version '2'; there are ['1']"),
        ("toy-b", "-1", "version: toy-b has no version '-1'"),
        ("toy-b", "../1", "version: toy-b has no version '../1'"),
        ("toy-b", "01", "version: toy-b has no version '01'"),
    ],
    ids=["unknown", "traversal", "path", "null byte", "1 MB", "version", "negative", "version traversal", "version 01"],
)
def test_unknown_models_and_versions(stub, model, version, words):
    """NOT_FOUND says what there is, for metadata and inference; asked whether it is ready, the answer is no."""
    for call in (
        lambda: infer(stub, tensor(), raw=[GOOD], model=model, model_version=version),
        lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name=model, version=version), timeout=TIMEOUT_S),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        assert words in error.value.details()
    assert not stub.ModelReady(pb.ModelReadyRequest(name=model, version=version), timeout=TIMEOUT_S).ready


def test_metadata_lists_versions_input_and_outputs(stub):
    """All versions are listed, whichever is asked for; the input is named as in the ONNX file and holds bytes."""
    answer = stub.ModelMetadata(pb.ModelMetadataRequest(name="toy-a", version="1"), timeout=TIMEOUT_S)
    assert (answer.versions, answer.platform) == (["1", "2"], "onnx_onnxv1")
    tensors = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in [*answer.inputs, *answer.outputs]}
    assert tensors == {
        "vectors": ("UINT8", [-1, 784]),
        "probabilities": ("FP32", [-1, 10]),
        "digits": ("UINT8", [-1]),
        "confidences": ("FP32", [-1]),
        "quality_flags": ("UINT8", [-1]),
    }


def test_metadata_and_readiness_need_a_name(stub):
    """A model's name left out is a fault, whatever is asked of it."""
    for call, message in (
        (stub.ModelMetadata, pb.ModelMetadataRequest()),
        (stub.ModelReady, pb.ModelReadyRequest(version="1")),
        (stub.ModelConfig, pb.ModelConfigRequest()),
    ):
        with pytest.raises(grpc.RpcError) as error:
            call(message, timeout=TIMEOUT_S)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details() == "name: is empty; allowed are ['toy-a', 'toy-b']"


def test_statistics_are_summed_over_workers(toy_models, tmp_path, transport):
    """Whichever worker is asked tells what all have answered, of one model or of each."""
    server = start_server(toy_models, tmp_path, f"--transport={transport}", "--workers=2", "--default-model=toy-b")
    pool = [("grpc.use_local_subchannel_pool", 1)]  # connections of their own, so that both workers get some
    channels = [grpc.insecure_channel(server.address, pool) for _ in range(12)]
    stubs = [pb_grpc.GRPCInferenceServiceStub(channel) for channel in channels]
    for stub in stubs:
        infer(stub, tensor(shape=(2, 784)), raw=[GOOD * 2])

    def statistics(stub, name=""):
        return stub.ModelStatistics(pb.ModelStatisticsRequest(name=name), timeout=TIMEOUT_S).model_stats

    def has_all(stub):
        [counted] = statistics(stub, "toy-b")
        times = counted.inference_stats
        assert times.success.ns >= times.compute_infer.ns > 0
        return counted.inference_count == 24 and counted.execution_count == times.success.count == 12

    for stub in stubs:
        wait_until(lambda stub=stub: has_all(stub))  # at once, but for a worker that is slow to say what it has counted
    each = [(one.name, one.version, one.inference_count) for one in statistics(stubs[0])]
    assert each == [("toy-a", "2", 0), ("toy-b", "1", 24)]
    with pytest.raises(grpc.RpcError) as error:
        statistics(stubs[0], "toy-c")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    for channel in channels:
        channel.close()
    assert server.stop() == 0


def test_index_lists_what_is_on_disk(stub):
    """Every version with its state; there is one repository, so another's name is a fault."""
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=TIMEOUT_S).models
    assert [(model.name, model.version, model.state) for model in index] == [
        ("toy-a", "1", "READY"),
        ("toy-a", "2", "READY"),
        ("toy-b", "1", "READY"),
    ]
    with pytest.raises(grpc.RpcError) as error:
        stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other"), timeout=TIMEOUT_S)
    assert error.value.details() == "repository_name: is 'other'; allowed is '': there is one"


def test_batches_queue_and_deadlines_are_those_of_classify(toy_models, tmp_path, transport):
    """Requests of both services share queue and batches; each gets its own rows of the answer, before its deadline."""
    flags = ["--default-model=toy-b", f"--transport={transport}", "--max-wait-ms=10000", "--max-batch-size=64"]
    server = start_server(toy_models, tmp_path, *flags, "--max-queue=21")
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        classify = classifier_pb2_grpc.DigitClassifierStub(channel).Classify
        waiting = classify.future(classifier_pb2.ClassifyRequest(pixels=GOOD * 20))  # without a deadline: for 10 s
        wait_until(lambda: server.metric("digits_queue_depth{") == 20)
        with pytest.raises(grpc.RpcError) as error:
            infer(stub, tensor(shape=(2, 784)), raw=[GOOD * 2])
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rpc_status.from_call(error.value).details[0].Unpack(RetryInfo())
        answer = stub.ModelInfer(request(tensor(), raw=[PIXELS[1].tobytes()]), timeout=8)
        assert answer.parameters["batch_size"].int64_param == waiting.result().timing.batch_size == 21
        assert columns(answer)["digits"].tolist() == [8]
    assert server.stop() == 0


def test_a_request_may_be_as_large_as_for_classify(stub):
    """More images than a request may hold are refused, as for `Classify`."""
    with pytest.raises(grpc.RpcError) as error:
        infer(stub, tensor(shape=(5000, 784)), raw=[bytes(5000 * 784)])
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "images: 5000 in one request; allowed are up to 4096" in error.value.details()


def test_health_knows_the_service(server):
    """The health service answers for it by name."""
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"), timeout=TIMEOUT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
