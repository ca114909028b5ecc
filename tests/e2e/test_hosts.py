"""Where a server listens: each spelling of a host that people use."""

import os
import signal
import tempfile
from pathlib import Path

import grpc
import pytest
from conftest import start_server, wait_until
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc


def digit_from(address):
    with grpc.insecure_channel(address) as channel:
        call = pb_grpc.DigitClassifierStub(channel).Classify
        return call(pb.ClassifyRequest(pixels=image_of(3).tobytes()), timeout=20, wait_for_ready=True).digits[0]


@pytest.mark.parametrize(
    ("host", "shown", "reached"),
    [
        ("localhost", "localhost", ["127.0.0.1", "localhost"]),
        ("::1", "[::1]", ["[::1]"]),
        ("[::1]", "[::1]", ["[::1]"]),
        ("::", "[::]", ["[::1]", "127.0.0.1"]),
    ],
)
def test_network_hosts(toy_models, tmp_path, transport, host, shown, reached):
    """IPv6 addresses are taken with brackets and without, and `::` takes IPv4 as well; the ready line is an address."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", f"--transport={transport}", f"--host={host}")
    start, _, port = server.address.rpartition(":")
    assert start == shown
    assert [digit_from(f"{name}:{port}") for name in reached] == [3] * len(reached)
    assert server.stop() == 0


def test_unix_socket(toy_models, tmp_path, transport):
    """A path can be listened on, with no port in its name; a worker's end leaves it, and nothing is left at the end."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is too long a name for sockets
        path = Path(folder) / "digits.sock"
        flags = ["--default-model=toy-b", f"--transport={transport}", f"--host=unix:{path}", "--workers=auto"]
        server = start_server(toy_models, tmp_path, *flags)
        assert server.address == f"unix:{path}"
        assert digit_from(server.address) == 3
        if transport == "envoy":  # grpcio's lone worker has no supervisor
            (worker,) = server.workers()
            os.kill(worker, signal.SIGTERM)
            wait_until(lambda: server.workers() not in ([], [worker]))
            assert digit_from(server.address) == 3
        assert server.stop() == 0
        assert not path.exists()
