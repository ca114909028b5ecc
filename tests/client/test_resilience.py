"""What happens when servers are busy, many, restarted, silent or particular about who calls."""

import dataclasses
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
import trustme
from packages import image_of
from stub_server import Servicer, answer, serving

from digits_client import ClientClosed, DigitClient, Overloaded, ServerUnavailable, Tls, _base

BLANK = np.zeros(784, np.uint8)


def failing(times, code, *, pushback_ms=None):
    """Return a `classify` that fails the first times."""
    left = [times]

    def classify(request, context):
        if left[0]:
            left[0] -= 1
            if pushback_ms is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback_ms)),))
            context.abort(code, "not now")
        return answer(request)

    return classify


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED]
)
def test_calls_are_retried(code):
    """A server that is away, full or shutting down for a moment is asked again; the caller notices nothing."""
    servicer = Servicer(failing(2, code))
    with serving(servicer) as port, DigitClient(f"127.0.0.1:{port}", timeout_s=20) as client:
        assert client.classify(BLANK).digit == 0
    assert len(servicer.sizes) == 3


def test_large_requests_are_retried_too():
    """A copy of 1,024 float images, 3.2 MB, is kept to be sent again."""
    servicer = Servicer(failing(1, grpc.StatusCode.UNAVAILABLE))
    with serving(servicer) as port, DigitClient(f"127.0.0.1:{port}", timeout_s=60) as client:
        assert len(client.classify_many(np.zeros((1024, 784), np.float32))) == 1024
    assert servicer.sizes == [1024, 1024]


def test_pushback_is_honoured():
    """A full server that says not to come back is not asked again."""
    servicer = Servicer(failing(1, grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=-1))
    with (
        serving(servicer) as port,
        DigitClient(f"127.0.0.1:{port}", timeout_s=20) as client,
        pytest.raises(Overloaded, match="not now"),
    ):
        client.classify(BLANK)
    assert len(servicer.sizes) == 1


def test_retries_are_throttled():
    """Many failures in a row end the retries: a server in trouble is not asked four times as much."""
    servicer = Servicer(failing(10_000, grpc.StatusCode.UNAVAILABLE))
    with serving(servicer) as port, DigitClient(f"127.0.0.1:{port}", timeout_s=20, connections=1) as client:
        for _ in range(60):
            with pytest.raises(ServerUnavailable):
                client.classify(BLANK)
    assert len(servicer.sizes) < 60 * 2  # unthrottled: 240


def test_the_servers_get_the_deadline():
    """A server learns how long the caller will wait."""
    left = []

    def classify(request, context):
        left.append(context.time_remaining())
        return answer(request)

    with serving(Servicer(classify)) as port, DigitClient(f"127.0.0.1:{port}") as client:
        client.classify(BLANK)
        client.classify(BLANK, timeout_s=1000)
    # gRPC rounds what it sends up, by a tenth at most.
    assert 0 < left[0] < 1.1 * _base.DEFAULT_TIMEOUT_S
    assert 900 < left[1] < 1100


def test_calls_go_to_all_servers_of_a_list():
    """Two addresses are asked in turn, once both are connected."""
    one, other = Servicer(), Servicer()
    with (
        serving(one) as first,
        serving(other) as second,
        DigitClient([f"127.0.0.1:{first}", f"127.0.0.1:{second}"], timeout_s=20) as client,
    ):
        while not (len(one.sizes) > 5 and len(other.sizes) > 5):
            client.classify(BLANK)


def test_a_list_is_no_host_name(server):
    """What a client of several addresses gives as the host's name is one that every transport takes."""
    with DigitClient([server.address, "127.0.0.1:1"], timeout_s=20) as client:
        assert client.classify(image_of(3)).digit == 3


def test_servers_bear_the_pings_of_a_silent_stream(server):
    """A stream on which nothing is said for seconds goes on: the server allows the pings that the client sends."""

    def images():
        yield image_of(1)
        time.sleep(6)  # the silence itself; a server that minds would have ended the connection by the fourth ping
        yield image_of(2)

    with DigitClient(server.address, timeout_s=20) as client:
        assert [answer.digit for answer in client.stream(images())] == [1, 2]


def test_one_dead_server_of_a_list_is_not_noticed():
    """Calls go to those who live."""
    with serving(Servicer()) as port, DigitClient(["127.0.0.1:1", f"127.0.0.1:{port}"], timeout_s=20) as client:
        for _ in range(20):
            client.classify(BLANK)


def test_each_connection_is_its_own():
    """Connections are not shared, so that several reach several processes of a server."""
    peers = set()

    def classify(request, context):
        peers.add(context.peer())
        return answer(request)

    with serving(Servicer(classify)) as port, DigitClient(f"127.0.0.1:{port}", connections=3) as client:
        for _ in range(6):
            client.classify(BLANK)
    assert len(peers) == 3


def test_a_restarted_server_is_found_again():
    """The same client works again once the server is back, without a word."""
    with serving(Servicer()) as port:
        client = DigitClient(f"127.0.0.1:{port}", timeout_s=20)
        client.classify(BLANK)
    with pytest.raises(ServerUnavailable):
        client.classify(BLANK)
    with serving(Servicer(), f"127.0.0.1:{port}"):
        until = time.monotonic() + 60
        while True:
            try:
                client.classify(BLANK)
                break
            except ServerUnavailable:
                assert time.monotonic() < until
                time.sleep(0.05)
    client.close()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority, tmp_path):
    """Return what trusts the authority."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return Tls(ca=tmp_path / "ca.pem")


def server_credentials(authority, name):
    own = authority.issue_cert(name)
    return grpc.ssl_server_credentials([(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())])


def test_tls_and_token(authority, tls):
    """With `tls` the connection is encrypted; with `token` each call carries it."""
    servicer = Servicer()
    with serving(servicer, "localhost:0", server_credentials(authority, "localhost")) as port:
        with DigitClient(f"localhost:{port}", tls=tls, token="abc", timeout_s=20) as client:
            client.classify(BLANK)
            client.classify_many([BLANK])
        with DigitClient(f"localhost:{port}", timeout_s=20) as plain, pytest.raises(ServerUnavailable):
            plain.classify(BLANK)
    assert [metadata["authorization"] for metadata in servicer.metadata] == ["Bearer abc"] * 2


def test_the_name_in_the_certificate_is_checked(authority, tls):
    """A certificate for another name is refused, unless the client was told to expect that name."""
    with serving(Servicer(), "localhost:0", server_credentials(authority, "digits.example.org")) as port:
        with (
            DigitClient(f"localhost:{port}", tls=tls, timeout_s=20) as wary,
            pytest.raises(ServerUnavailable),
        ):
            wary.classify(BLANK)
        tls = dataclasses.replace(tls, server_name="digits.example.org")
        with DigitClient(f"localhost:{port}", tls=tls, timeout_s=20) as client:
            client.classify(BLANK)


def test_files_of_tls_are_read_at_once(tmp_path):
    """A missing file is said when the client is made, not at the first call."""
    with pytest.raises(FileNotFoundError, match=r"no\.pem"):
        DigitClient(tls=Tls(ca=tmp_path / "no.pem"))


FORKED = """
import os, sys
from digits_client import ClientClosed, DigitClient
client = DigitClient(sys.argv[1])
child = os.fork()
if not child:
    try:
        client.health()
    except ClientClosed as error:
        print(error)
        sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(client.health())
"""


def test_a_fork_is_refused_with_the_way_out(server):
    """In a forked child the parent's client says what to do instead of hanging; in the parent it works on."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, server.address]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "make clients after the fork" in output
    assert output.endswith("True\n")


def test_a_closed_client_says_so(server):
    """After `close` every call is refused at once."""
    client = DigitClient(server.address)
    client.close()
    for call in (
        lambda: client.classify(image_of(1)),
        lambda: client.classify_many([image_of(1)]),
        lambda: next(client.stream([image_of(1)])),
        client.health,
    ):
        with pytest.raises(ClientClosed, match="the client is closed"):
            call()


@pytest.mark.parametrize(
    ("ca", "certificate", "key"),
    [(b"", None, None), (b"\x30\x82DER", None, None), (None, b"me", None), (None, None, b"me"), (None, b"", b"me")],
)
def test_files_of_tls_that_would_end_the_process_are_refused(tmp_path, ca, certificate, key):
    """Empty files and half a pair, with which gRPC aborts, and what is no PEM, are an error that names them."""
    files = {"ca": ca, "certificate": certificate, "key": key}
    given = {name: tmp_path / name for name, contents in files.items() if contents is not None}
    for name, path in given.items():
        path.write_bytes(files[name])
    with pytest.raises(ValueError, match=rf"tls: .*{next(reversed(given))}.* bytes; allowed are PEM files"):
        DigitClient(tls=Tls(**given))
