"""What clients should never send, one by one: each of these once found a fault."""

import json

import grpc
import pytest
from conftest import start_server
from fuzz import FORGED, METHODS, right_answers
from http2 import Connection, framed

from digits.v1 import classifier_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.fixture(scope="module")
def server(toy_models, tmp_path_factory, transport):
    """A server of its own, whose log must stay clean and whose answers right."""
    flags = ["--default-model=toy-b", f"--transport={transport}"]
    server = start_server(toy_models, tmp_path_factory.mktemp("hostile"), *flags)
    yield server
    assert right_answers(server)
    assert server.stop() == 0


@pytest.fixture
def connection(server):
    """A connection to the server, after which its log must hold nothing that isn't a line of its own."""
    before = len(server.log)
    with Connection(int(server.address.rpartition(":")[2])) as connection:
        yield connection
    assert right_answers(server)
    entries = [json.loads(line) for line in server.log[before:].splitlines()]
    assert [entry["message"] for entry in entries if entry["level"] != "INFO"] == []


@pytest.mark.parametrize("method", [method for method in METHODS if "ClassifyStream" not in method])
def test_garbage_is_the_callers_fault_everywhere(connection, method):
    """Health and reflection, which aren't ours, refuse what they can't read as our services do, and log no stack."""
    assert connection.call(framed(b"\xff" * 9), method) == INVALID
    assert connection.call(framed(b"\x0b" * 5000), method) == INVALID


def test_metadata_that_is_not_text(connection):
    """Bytes that aren't UTF-8 in metadata end the call or pass, and log no stack."""
    request = framed(pb.ClassifyRequest(pixels=bytes(784)).SerializeToString())
    connection.call(request, more=[("x-odd", b"\xff\xfe")])


@pytest.mark.parametrize("header", [("te", "gzip"), ("grpc-encoding", "br"), ("grpc-timeout", "soon"), (":odd", "x")])
def test_headers_that_grpc_refuses(connection, header):
    """What gRPC finds wrong it tells the client; its own lines, which are no JSON, stay out of the log."""
    connection.call(framed(b""), headers=[("content-type", "application/grpc"), header])


def test_callers_who_leave_before_the_answer(server, connection):
    """Calls that are cancelled, or whose connection ends, just before the answer log nothing."""
    port = int(server.address.rpartition(":")[2])
    request = pb.ClassifyRequest(pixels=bytes(784))
    bodies = {
        METHODS[0]: framed(request.SerializeToString()),
        METHODS[1]: framed(pb.ClassifyStreamRequest(request=request).SerializeToString()),
    }
    for _ in range(50):
        with Connection(port) as leaving:
            leaving.h2.update_settings({4: 0})  # no room for answers
            for method in [*bodies] * 4:
                stream = leaving.open(method)
                leaving.write(stream, bodies[method])
                leaving.h2.reset_stream(stream, 8)
                leaving.flush()


def test_text_of_the_caller_cannot_forge_a_line(server, connection):
    """Line breaks and JSON in names and ids come out as text, within the one line that they belong to."""
    for fields in ({"model": FORGED}, {"version": FORGED}, {"request_id": FORGED}):
        connection.call(framed(pb.ClassifyRequest(pixels=bytes(784), **fields).SerializeToString()))
    assert FORGED.strip() not in server.log.splitlines()
