"""What one client may ask of a server, and what becomes of those who ask for more."""

import re
import socket
import threading
import zlib

import grpc
import pytest
from conftest import ROOT, start_server
from http2 import CLASSIFY, Connection, framed
from packages import image_of

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_server.config import Config

GOOD = framed(pb.ClassifyRequest(pixels=image_of(3).tobytes()).SerializeToString())
OK, INVALID, EXHAUSTED, UNIMPLEMENTED = (
    grpc.StatusCode[name].value[0] for name in ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
)
REFUSED_STREAM, ENHANCE_YOUR_CALM = 7, 11


@pytest.fixture
def limited(toy_models, tmp_path):
    """Return what starts a server with some limits and gives its port; all are ended and must have survived."""
    servers = []

    def start(*flags):
        servers.append(start_server(toy_models, tmp_path, "--default-model=toy-b", *flags))
        return int(servers[-1].address.rpartition(":")[2])

    yield start
    for server in servers:
        with grpc.insecure_channel(server.address) as channel:
            call = pb_grpc.DigitClassifierStub(channel).Classify
            assert call(pb.ClassifyRequest(pixels=image_of(3).tobytes()), timeout=20, wait_for_ready=True).digits == [3]
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_metadata(limited, transport):
    """A call with more than 16 KiB of metadata is refused, and others are not."""
    port = limited(f"--transport={transport}")
    with Connection(port) as connection:
        assert {connection.call(GOOD, more=[("x", "y" * 15_000)]) for _ in range(20)} == {OK}  # none by chance
        assert connection.call(GOOD, more=[("x", "y" * 20_000)]) in {EXHAUSTED, "HTTP 431", "reset 2"}
    with Connection(port) as connection:
        assert connection.call(GOOD) == OK


def test_a_refusal_is_a_status_alone(limited, transport):
    """No message comes with it: clients do not try again what has been answered, be it with nothing."""
    with Connection(limited(f"--transport={transport}")) as connection:
        stream = connection.open()
        connection.write(stream, framed(b""))
        assert connection.outcome(stream) == INVALID
        assert stream not in connection.messages
        assert connection.call(GOOD) == OK
        assert len(connection.messages) == 1


def test_refused_requests_leave_no_memory(toy_models, tmp_path, transport):
    """Requests of megabytes that are refused are not kept: sixty of them would take 235 MB."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", f"--transport={transport}")
    large = pb.ClassifyRequest(pixels=bytes(784 * 5000))
    with grpc.insecure_channel(server.address) as channel:
        call = pb_grpc.DigitClassifierStub(channel).Classify
        taken_mb = []
        for _ in range(60):
            with pytest.raises(grpc.RpcError, match="allowed are up to"):
                call(large, timeout=20)
            taken_mb.append(server.memory_mb)
    assert taken_mb[-1] - taken_mb[0] < 120
    assert server.stop() == 0


def test_message_that_is_only_announced(limited, transport):
    """A message that says to be longer than 4 MiB ends its call, and only that."""
    with Connection(limited(f"--transport={transport}")) as connection:
        assert connection.call(framed(b"x" * (4 * 2**20 + 1))) == EXHAUSTED
        stream = connection.open()
        connection.write(stream, framed(b"x", length=2**32 - 1), end=False)
        assert connection.outcome(stream) == EXHAUSTED
        assert connection.call(GOOD) == OK


def test_streams(limited, transport):
    """A connection gets no more than 1,024 calls at once; who ignores that is refused."""
    with Connection(limited(f"--transport={transport}")) as connection:
        while connection.h2.remote_settings.max_concurrent_streams != 1024:
            connection.read()
        connection.h2.remote_settings._settings.pop(3)  # forget it
        streams = [connection.open() for _ in range(1026)]
        outcomes = {connection.outcome(stream) for stream in streams[1024:]}
        if transport == "envoy":  # it ends such a connection
            assert outcomes == {"closed"}
            return
        assert outcomes == {f"reset {REFUSED_STREAM}"}
        connection.write(streams[0], GOOD)
        assert connection.outcome(streams[0]) == OK


def test_connections(limited, transport):
    """Connections above 1,000 are closed; when some end there is room again."""
    port = limited(f"--transport={transport}")
    first = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
    outcome = OK
    while outcome == OK:  # until the server has seen all of them
        with Connection(port) as another:
            outcome = another.call(GOOD)
    assert outcome == "closed"
    for each in first:
        each.close()
    while outcome == "closed":  # until it has seen their end
        with Connection(port) as another:
            outcome = another.call(GOOD)
    assert outcome == OK


def test_pings(limited):
    """Who pings grpcio more often than every 0.5 s is sent away for it; Envoy answers pings."""
    with Connection(limited("--transport=grpcio")) as connection:
        while not connection.is_closed and connection.goaway is None:
            connection.h2.ping(b"too many")
            connection.flush()
            connection.read()  # its acknowledgement
        assert connection.goaway == ENHANCE_YOUR_CALM


def test_old_connections(limited, transport):
    """A connection of --max-connection-age-s is told to go; what it has under way is still answered."""
    message = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=image_of(3).tobytes()))
    is_old = threading.Event()
    with grpc.insecure_channel(
        f"127.0.0.1:{limited(f'--transport={transport}', '--max-connection-age-s=1')}"
    ) as channel:

        def requests():
            yield message
            is_old.wait()
            yield message

        answers = pb_grpc.DigitClassifierStub(channel).ClassifyStream(requests(), timeout=20)
        assert next(answers).response.digits == [3]
        channel.subscribe(lambda state: is_old.set() if state == grpc.ChannelConnectivity.IDLE else None)
        assert [answer.response.digits for answer in answers] == [[3]]
        assert is_old.is_set()


def test_without_settings_there_are_limits(limited, transport):
    """The limits have the defaults that the documentation tells; clients learn the two that HTTP/2 announces."""
    rows = re.findall(r"^\|[^|]+\| `--(\S+)` \| ([\d.]+) \|", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    documented = {flag.replace("-", "_"): float(number) for flag, number in rows}
    assert documented == {
        field: getattr(Config, field)
        for field in Config.__dataclass_fields__
        if field.startswith(("max_", "min_")) and field not in {"max_batch_size", "max_wait_ms"}
    }
    with Connection(limited(f"--transport={transport}")) as connection:
        assert connection.call(GOOD) == OK
        announced = connection.h2.remote_settings
        assert announced.max_concurrent_streams == 1024


def test_compressed_messages_are_refused(limited, transport):
    """A message that would unpack to a gigabyte is refused unopened; plain ones pass on the same connection."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1024)) + packer.flush()
    with Connection(limited(f"--transport={transport}")) as connection:
        assert connection.call(framed(bomb, flag=1), CLASSIFY, more=[("grpc-encoding", "gzip")]) == UNIMPLEMENTED
        assert connection.call(framed(bomb, flag=1)) in {INVALID, UNIMPLEMENTED, grpc.StatusCode.INTERNAL.value[0]}
        assert connection.call(GOOD) == OK
