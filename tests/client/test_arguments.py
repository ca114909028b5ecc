"""Arguments that can't be used are refused before anything is sent, named with their value and what is allowed."""

import asyncio
import math

import grpc
import numpy as np
import pytest
from stub_server import Servicer, serving

from digits_client import AsyncDigitClient, ClientClosed, DigitClient, ServerUnavailable, _address
from digits_client.testing import FakeAsyncDigitClient, FakeDigitClient, FakeTransport

IMAGE = np.zeros(784, np.uint8)
TIMEOUTS = [0, -1, math.nan, math.inf, 1e18, "5", True, 10**400]


@pytest.mark.parametrize(
    ("server", "target"),
    [
        ("digits:50051", "digits:50051"),
        ("my_host.example.org:1", "my_host.example.org:1"),
        ("dns:53", "dns:53"),
        ("dns:///digits:50051", "dns:///digits:50051"),
        ("dns://8.8.8.8/digits:50051", "dns://8.8.8.8/digits:50051"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("ipv6:[::1]:50051", "ipv6:[::1]:50051"),
        ("unix:/run/digits.sock", "unix:/run/digits.sock"),
        ("unix:///run/digits.sock", "unix:///run/digits.sock"),
        ("unix:digits.sock", "unix:digits.sock"),
        ("unix-abstract:digits", "unix-abstract:digits"),
        ("[::1]:50051", "[::1]:50051"),
        ("::1:50051", "[::1]:50051"),
        ("[::]:50051", "[::]:50051"),
        ("[fe80::1%eth0]:50051", "[fe80::1%eth0]:50051"),
        ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "::1:50051"], "ipv6:[::1]:1,[::1]:50051"),
    ],
)
def test_addresses(server, target):
    """Addresses in the usual spellings become what gRPC resolves; lists of them become one target."""
    assert _address.target(server) == target


@pytest.mark.parametrize(
    "server",
    [
        *("", " ", "localhost", "localhost:", ":50051", "127.0.0.1", "::1", "[::1]", "[::1]:", "[::1:5", "::1]:5"),
        *("http://localhost:50051", "https://digits.example.org", "grpc://localhost:1", "localhost:50051/", "a b:1"),
        *(
            "localhost:0",
            "localhost:65536",
            "localhost:107536",
            "localhost:-1",
            "localhost:x",
            "localhost:\uff15",
            "h:1\n",
        ),
        *("user@host:1", "[10.0.0.1]:1", "dns:///digits", "dns:///", "unix:", "unix://", "ipv4:10.0.0.1", "ipv6:::1"),
        *(None, 50051, b"localhost:1", ("localhost", 50051), ["localhost:1", 2], {"a": 1}),
        *([], ["digits:50051"], ["10.0.0.1"], ["10.0.0.1:1", "[::1]:1"], ["10.0.0.1:x"], ["10.0.0.1:99999"], ["::1"]),
    ],
    ids=repr,
)
def test_what_is_no_address_is_refused(server):
    """A scheme, no port, an impossible one, nothing at all: said when the client is made."""
    with pytest.raises(ValueError, match=r"^server: "):
        DigitClient(server)


def test_a_socket_of_the_file_system_is_an_address(tmp_path):
    """A server on a Unix socket is reached, by a proxy's user too."""
    address = f"unix:{tmp_path}/digits.sock"
    with serving(Servicer(), address), DigitClient(address, timeout_s=20) as client:
        assert client.classify(IMAGE).digit == 0


@pytest.mark.parametrize("spelling", ["[::1]:{}", "::1:{}", "ipv6:[::1]:{}", "localhost:{}"])
def test_ipv6_is_reached_in_every_spelling(spelling):
    """IPv6's loopback address is found with and without brackets, and by name."""
    with serving(Servicer(), "[::]:0") as port:
        if spelling == "::1:{}" and port < 10_000:
            pytest.skip("::1:9999 is an address by itself")
        with DigitClient(spelling.format(port), timeout_s=20) as client:
            assert client.classify(IMAGE).digit == 0


def test_loopback_needs_no_proxy(monkeypatch):
    """A proxy in the environment takes no call to this host away."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with serving(Servicer()) as port:
        for host in ("127.0.0.1", "localhost"):
            with DigitClient(f"{host}:{port}", timeout_s=20) as client:
                assert client.classify(IMAGE).digit == 0


def test_a_proxy_is_named_where_it_fails(monkeypatch):
    """Who can't reach a server through a proxy hears of the proxy, but not its password, and of the way round."""
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    with DigitClient("digits.example.org:50051", timeout_s=5) as client, pytest.raises(ServerUnavailable) as raised:
        client.health()
    assert "through the proxy that http_proxy names" in str(raised.value)
    assert "no_proxy=digits.example.org goes without" in str(raised.value)
    assert "secret" not in str(raised.value)
    monkeypatch.setenv("no_proxy", "localhost, .example.org")
    assert _address.proxy_hint("digits.example.org:50051") == ""
    assert _address.proxy_hint("digits.example.com:50051") != ""
    assert _address.proxy_hint("unix:/run/digits.sock") == ""
    assert "through the proxy" in _address.proxy_hint("unix-box:50051")  # a host's name


@pytest.mark.parametrize("timeout_s", TIMEOUTS, ids=repr)
async def test_timeouts_that_cannot_be_kept_are_refused(timeout_s):
    """Of the client and of each call: zero, negative, not a number, infinite, longer than gRPC can count."""
    client, asynchronous = FakeDigitClient(7), FakeAsyncDigitClient(7)
    calls = [
        lambda: DigitClient(timeout_s=timeout_s),
        lambda: client.classify(IMAGE, timeout_s=timeout_s),
        lambda: client.classify_many([IMAGE], timeout_s=timeout_s),
        lambda: next(client.stream([IMAGE], timeout_s=timeout_s)),
        lambda: client.models(timeout_s=timeout_s),
        lambda: client.health(timeout_s=timeout_s),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"timeout_s: .*; allowed are numbers above 0, in seconds"):
            call()
    for coroutine in (
        asynchronous.classify(IMAGE, timeout_s=timeout_s),
        asynchronous.classify_many([IMAGE], timeout_s=timeout_s),
        anext(asynchronous.stream([IMAGE], timeout_s=timeout_s)),
        asynchronous.models(timeout_s=timeout_s),
        asynchronous.health(timeout_s=timeout_s),
    ):
        with pytest.raises(ValueError, match="timeout_s: "):
            await coroutine


def test_the_longest_timeout_is_kept():
    """A year is no time that gRPC miscounts."""
    with serving(Servicer()) as port, DigitClient(f"127.0.0.1:{port}", timeout_s=366 * 86_400) as client:
        assert client.classify(IMAGE).digit == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("connections", value) for value in (0, -1, 1.5, "2", True, 10**6)),
        *(("model", value) for value in (None, 1, b"m", "\udc80", "a\nb")),
        *(("version", value) for value in (None, 1.0, True, "\udc80")),
        *(("token", value) for value in (None, b"t", " \n", "a b", "ä", "a\nb", "a\0", "\u200bt")),
        *(("tls", value) for value in (True, "ca.pem", {"ca": "ca.pem"})),
        ("interceptors", [object()]),
    ],
)
def test_other_arguments_are_named(name, value):
    """The error names the argument and what is allowed."""
    with pytest.raises(ValueError, match=rf"^{name}: .*"):
        DigitClient(**{name: value})


def test_a_token_is_not_told_in_the_error():
    """Messages end up in logs, where a secret may not: one character and its place are enough."""
    with pytest.raises(ValueError, match="token: ") as raised:
        DigitClient(token="my secret")
    assert str(raised.value) == "token: ' ' at position 2; allowed are printable ASCII characters"


def test_a_version_may_be_a_number():
    """Versions are numbers to people, text on the wire."""
    assert FakeDigitClient(7, version=3).classify(IMAGE).version == "3"


def test_white_space_around_a_token_is_not_sent():
    """As the newline at the end of a file of tokens."""
    servicer = Servicer()
    with serving(servicer) as port, DigitClient(f"127.0.0.1:{port}", token=" abc\r\n", timeout_s=20) as client:
        client.classify(IMAGE)
    assert servicer.metadata[0]["authorization"] == "Bearer abc"


def test_a_second_event_loop_is_refused_in_words(server):
    """An asyncio client that outlives its event loop says so, for every call, and can be closed."""
    client = AsyncDigitClient(server.address)
    assert asyncio.run(client.health())

    async def everything():
        for call in (
            client.classify(IMAGE),
            client.classify_many([IMAGE]),
            anext(client.stream([IMAGE])),
            client.models(),
            client.health(),
        ):
            with pytest.raises(ClientClosed, match=r"another; make a client in each asyncio\.run"):
                await call
        await client.close()

    asyncio.run(everything())


def test_interceptors_see_every_call():
    """What is passed as `interceptors` is around each call, as tracing wants to be."""
    seen = []

    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            seen.append(details.method.rpartition("/")[2])
            return continuation(details, request)

    interceptors = [Interceptor()]
    with serving(Servicer()) as port, DigitClient(f"127.0.0.1:{port}", interceptors=interceptors) as client:
        client.classify(IMAGE, timeout_s=20)
        client.classify_many([IMAGE], timeout_s=20)
    assert seen == ["Classify", "ListModels", "Classify"]


def test_transports_are_told_how_long():
    """Labels are learned in what is left of the call's own time."""
    left = []

    class Timed(FakeTransport):
        def call(self, method, request, timeout_s):
            left.append((method.rpartition("/")[2], timeout_s))
            return super().call(method, request, timeout_s)

    DigitClient(transport=Timed(7)).classify(IMAGE, timeout_s=3)
    assert [name for name, _ in left] == ["Classify", "ListModels"]
    assert left[0][1] == 3
    assert left[1][1] <= 3
