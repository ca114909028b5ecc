"""Messages that nobody thought of, in every field of every request of both services, asked of a live server."""

import json

import grpc
import pytest
from conftest import start_server
from fuzz import right_answers, valid_requests
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digits.v1 import classifier_pb2 as pb
from open_inference.v2 import inference_pb2 as infer_pb

METHODS = [
    method
    for file in (pb.DESCRIPTOR, infer_pb.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
    if not method.client_streaming
]
EXPECTED = {grpc.StatusCode[name].value[0] for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")}
NUMBERS = {
    Field.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    Field.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    Field.TYPE_UINT32: st.integers(0, 2**32 - 1),
    Field.TYPE_UINT64: st.integers(0, 2**64 - 1),
    Field.TYPE_ENUM: st.integers(-(2**31), 2**31 - 1),
    Field.TYPE_BOOL: st.booleans(),
    Field.TYPE_FLOAT: st.floats(width=32),
    Field.TYPE_DOUBLE: st.floats(),
}
TEXT = st.one_of(
    st.sampled_from(["", "toy-a", "toy-b", "1", "2", "UINT8", "FP32", "vectors", "probabilities", "../../etc", "\n{}"]),
    st.text(max_size=300),
)
BYTES = st.one_of(st.binary(max_size=50), st.sampled_from([784, 783, 785, 1568, 3136, 78400]).map(bytes))


def within(message):
    """Yield a message and all those that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.message_type and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                yield from within(part)


GOOD = {}
"""Messages of valid requests, by type."""
for request in valid_requests():
    for part in within(request):
        GOOD.setdefault(part.DESCRIPTOR.full_name, []).append(part)


def values(field):
    """Return a strategy for what a field may hold."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        return st.dictionaries(TEXT, messages(field.message_type.fields_by_name["value"].message_type), max_size=3)
    if field.type == Field.TYPE_MESSAGE:
        one = messages(field.message_type)
    elif field.type == Field.TYPE_STRING:
        one = TEXT
    else:
        one = BYTES if field.type == Field.TYPE_BYTES else NUMBERS[field.type]
    if not field.is_repeated:
        return one
    whole_images = st.integers(1, 3).flatmap(lambda count: one.map(lambda value: [value] * (784 * count)))
    return st.one_of(st.lists(one, max_size=6), whole_images) if field.type in NUMBERS else st.lists(one, max_size=3)


def messages(descriptor):
    """Return a strategy for messages of a type: any, and good ones of which a field, or some, are others."""
    cls, good = GetMessageClass(descriptor), GOOD.get(descriptor.full_name)
    by_name = {field.name: values(field) for field in descriptor.fields}
    anything = st.fixed_dictionaries({}, optional=by_name).map(lambda fields: cls(**fields))
    if not good:
        return anything
    one_field = st.one_of([value.map(lambda it, name=name: cls(**{name: it})) for name, value in by_name.items()])

    def changed(message, other):
        merged = cls()
        merged.CopyFrom(message)
        for field, _ in other.ListFields():
            merged.ClearField(field.name)
        merged.MergeFrom(other)
        return merged

    return st.one_of(anything, *(st.builds(changed, st.sampled_from(good), other) for other in (one_field, anything)))


@pytest.fixture(scope="module")
def server(toy_models, tmp_path_factory, transport):
    """A server whose answers must be right and whose log must be clean at the end."""
    flags = ["--default-model=toy-b", f"--transport={transport}"]
    server = start_server(toy_models, tmp_path_factory.mktemp("properties"), *flags)
    yield server
    assert right_answers(server)
    assert server.stop() == 0
    assert {json.loads(line)["level"] for line in server.log.splitlines()} <= {"INFO", "WARNING"}


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def ask(channel, method, request):
    """Return the status code, its words, and the answer of a call."""
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        return 0, "", call(request, timeout=60)
    except grpc.RpcError as error:
        return error.code().value[0], error.details(), None


def check_answer(request, answer):
    """Check that an answer has a row for each image of its request."""
    if isinstance(answer, pb.ClassifyResponse):
        rows = (len(request.pixels) or len(request.vectors)) // 784
        assert len(answer.digits) == len(answer.confidences) == len(answer.quality_flags) == rows
        assert len(answer.probabilities) == (0 if request.omit_probabilities else 10 * rows)
        assert len(answer.top_digits) == rows * request.top_k
        assert answer.request_id == request.request_id
    elif isinstance(answer, infer_pb.ModelInferResponse):
        assert answer.id == request.id
        assert {output.shape[0] for output in answer.outputs} == {request.inputs[0].shape[0]}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_any_message_has_an_answer_or_its_fault_named(channel, method):
    """Whatever a request holds: the answer has a row an image, or the caller is told what is wrong; never our fault."""

    @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(messages(method.input_type))
    def holds(request):
        code, words, answer = ask(channel, method, request)
        assert code in EXPECTED, words
        assert answer is not None or words
        if answer is not None:
            check_answer(request, answer)

    holds()


def test_any_stream_answers_each_message(channel):
    """Whatever the messages of a stream hold: each has its answer or its error, in order."""
    method = pb.DESCRIPTOR.services_by_name["DigitClassifier"].methods_by_name["ClassifyStream"]

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(messages(pb.ClassifyRequest.DESCRIPTOR), max_size=5))
    def holds(sent):
        call = channel.stream_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda request: pb.ClassifyStreamRequest(request=request).SerializeToString(),
            response_deserializer=pb.ClassifyStreamResponse.FromString,
        )
        answers = list(call(iter(sent), timeout=60))
        assert len(answers) == len(sent)
        for request, answer in zip(sent, answers, strict=True):
            if answer.WhichOneof("result") == "response":
                check_answer(request, answer.response)
            else:
                assert answer.error.code in EXPECTED
                assert answer.error.message

    holds()
