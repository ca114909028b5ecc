"""What operators can ask a running server about its connections, if it was told to answer."""

import grpc
import pytest
from conftest import start_server
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


def test_operators_see_connections_and_calls(toy_models, tmp_path):
    """`--channelz` tells servers, their sockets and calls; what is asked about and not there is NOT_FOUND."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", "--transport=grpcio", "--channelz")
    with grpc.insecure_channel(server.address) as channel:
        pb_grpc.DigitClassifierStub(channel).Classify(pb.ClassifyRequest(pixels=image_of(3).tobytes()), timeout=20)
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        (this,) = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20).server
        assert this.data.calls_succeeded >= 1
        request = channelz_pb2.GetServerSocketsRequest(server_id=this.ref.server_id)
        assert len(stub.GetServerSockets(request, timeout=20).socket_ref) == 1
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetServer(channelz_pb2.GetServerRequest(server_id=10**9), timeout=20)
        assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
        assert "grpc.channelz.v1.Channelz" in ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "Traceback" not in server.log
    assert server.stop() == 0


def test_nobody_sees_them_unless_told(toy_models, tmp_path, transport):
    """Without the flag there is no such service."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", f"--transport={transport}")
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refusal:
        channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest(), timeout=20)
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert server.stop() == 0
