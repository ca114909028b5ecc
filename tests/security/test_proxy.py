"""What the shipped Envoy, in front of several servers, lets pass."""

import grpc
import pytest
from conftest import start_server
from packages import image_of
from proxies import Envoy

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

LARGEST = 4 * 2**20


@pytest.fixture(scope="module")
def stub(toy_models, tmp_path_factory):
    """Calls through Envoy to a server."""
    folder = tmp_path_factory.mktemp("proxy")
    server = start_server(toy_models, folder, "--default-model=toy-b")
    with Envoy([server.address], folder) as envoy, grpc.insecure_channel(envoy.address) as channel:
        yield pb_grpc.DigitClassifierStub(channel)
    assert server.stop() == 0


def request(size):
    """Return a request of so many bytes, which has an image too many or is good."""
    empty = pb.ClassifyRequest(pixels=image_of(3).tobytes(), request_id="").ByteSize()
    return pb.ClassifyRequest(pixels=image_of(3).tobytes(), model="x" * (size - empty - 4))


def test_call_of_the_largest_size_passes_and_a_larger_one_does_not(stub):
    """A unary call above the server's largest message ends at Envoy; one below reaches the server, which answers."""
    with pytest.raises(grpc.RpcError) as error:
        stub.Classify(request(LARGEST - 100), timeout=20)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND  # the server's word about a model of that name
    with pytest.raises(grpc.RpcError) as error:
        stub.Classify(request(LARGEST + 100), timeout=20)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Payload Too Large" in error.value.details()  # Envoy's words
    assert stub.Classify(pb.ClassifyRequest(pixels=image_of(3).tobytes()), timeout=20).digits == [3]


def test_stream_of_any_length_passes(stub):
    """The sum of a stream's messages has no limit, and each is answered as it comes."""
    message = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=image_of(3).tobytes() * 100))
    answers = stub.ClassifyStream((message for _ in range(100)), timeout=60)
    assert sum(list(answer.response.digits) == [3] * 100 for answer in answers) == 100
