"""Where a server may listen, and what is said if it can't."""

import socket

import pytest

from digits_server.addresses import Address, reserved
from digits_server.config import SettingRefused


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1", "127.0.0.1:5"),
        ("localhost", "localhost:5"),
        ("::1", "[::1]:5"),
        ("[::1]", "[::1]:5"),
        ("::", "[::]:5"),
        ("unix:/run/digits.sock", "unix:/run/digits.sock"),
    ],
)
def test_address_is_written_as_clients_give_it(host, text):
    """IPv6 addresses get brackets, given with them or without; a Unix socket has no port."""
    assert str(Address(host, 5)) == text


@pytest.mark.parametrize("shared", [True, False])
def test_port_that_is_taken_is_refused_with_the_reason(shared):
    """The operating system's own reason is given, whether the port would be shared or not."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(SettingRefused, match=f"--port: can't listen on 127.0.0.1:{port}: Address already in use"),
            reserved(Address("127.0.0.1", port), shared=shared),
        ):
            pass


def test_address_of_another_machine_is_refused():
    """The reason is not that the port is in use."""
    with (
        pytest.raises(SettingRefused, match="Cannot assign requested address"),
        reserved(Address("192.0.2.1", 0), shared=False),
    ):
        pass


def test_host_without_meaning_is_refused():
    """A host that no resolver knows is named."""
    with pytest.raises(SettingRefused, match="--host: can't listen on no such host"):
        Address("no such host", 5).resolve()


@pytest.mark.parametrize("shared", [True, False])
def test_what_goes_wrong_while_an_address_is_held_is_not_its_fault(shared):
    """Another OSError passes as it is."""
    with pytest.raises(OSError, match="no space") as error, reserved(Address("127.0.0.1", 0), shared=shared):
        raise OSError("no space")
    assert not isinstance(error.value, SettingRefused)


def test_shared_port_stays_the_same():
    """Of a free port, all who share it learn the number, and others can't have it."""
    with reserved(Address("127.0.0.1", 0), shared=True) as address, socket.socket() as other:
        assert address.port > 0
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", address.port))


def test_unix_socket_left_behind_is_replaced_and_one_in_use_is_not(tmp_path):
    """A socket without a listener is cleared away; one that is served, or another file, stays and is the reason."""
    path = tmp_path / "digits.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with reserved(Address(f"unix:{path}", 0), shared=False):
        assert not path.exists()
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(path))
        served.listen()
        with (
            pytest.raises(SettingRefused, match="Address already in use"),
            reserved(Address(f"unix:{path}", 0), shared=False),
        ):
            pass
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SettingRefused, match="File exists"), reserved(Address(f"unix:{file}", 0), shared=False):
        pass
