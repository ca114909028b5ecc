"""TLS and mTLS, and certificates that change while the server runs."""

import datetime as dt
import ssl

import grpc
import pytest
from conftest import start_server, wait_until
from credentials import write_certificate
from packages import image_of

from digits_client import DigitClient, ServerUnavailable, Tls
from digits_server.rpc import tls as certificates

NOT_AFTER = dt.datetime(2031, 5, 6, 7, 8, 9, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def _each_transport(transport, monkeypatch):
    """Let the servers of these tests run on the one transport, and then on the other."""
    monkeypatch.setenv("DIGITS_SERVER_TRANSPORT", transport)


def start_secure(models, files, *flags):
    """Start a server on the certificate of `files`; return it and its address by name."""
    tls = (f"--tls-cert={files / 'tls.pem'}", f"--tls-key={files / 'tls.key'}")
    server = start_server(models, files, "--default-model=toy-b", *tls, *flags)
    return server, f"localhost:{server.address.rpartition(':')[2]}"


def served_certificate(address):
    """Return the certificate, PEM, that a new connection gets."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=20)


def test_tls(toy_models, files, transport):
    """Who trusts the authority is served; who does not, or speaks plain text, is not. grpcio counts the handshakes."""
    server, address = start_secure(toy_models, files)
    with DigitClient(address, tls=Tls(files / "ca.pem"), timeout_s=20, connections=1) as client:
        assert client.classify(image_of(3)).digit == 3
    for tls in (None, Tls()):
        with DigitClient(address, tls=tls, timeout_s=20) as stranger, pytest.raises(ServerUnavailable):
            stranger.classify(image_of(3))
    assert server.metric("digits_tls_handshakes_total") >= 2 * (transport == "grpcio")
    assert server.stop() == 0


def test_mtls(toy_models, files):
    """With --tls-client-ca only those with a certificate of that authority get in."""
    server, address = start_secure(toy_models, files, f"--tls-client-ca={files / 'ca.pem'}")
    known = Tls(files / "ca.pem", files / "me.pem", files / "me.key")
    with DigitClient(address, tls=known, timeout_s=20) as client:
        assert client.classify(image_of(3)).digit == 3
    with DigitClient(address, tls=Tls(files / "ca.pem"), timeout_s=20) as nobody, pytest.raises(ServerUnavailable):
        nobody.classify(image_of(3))
    assert server.stop() == 0


def test_certificate_is_exchanged_without_a_restart(toy_models, files, authority):
    """New files are served to new connections; broken ones are refused, logged, counted; the metric tells the end."""
    server, address = start_secure(toy_models, files)
    old = served_certificate(address)
    assert old == (files / "tls.pem").read_text()

    (files / "tls.pem").write_text("broken")
    refused = 'digits_secret_loads_total{result="refused",secret="certificate"}'
    wait_until(lambda: server.metric(refused) == 1)
    assert served_certificate(address) == old
    assert "changed files refused" in server.log

    with DigitClient(address, tls=Tls(files / "ca.pem"), timeout_s=20) as client:
        client.classify(image_of(3))
        new = write_certificate(authority, files, "tls", not_after=NOT_AFTER)
        expires = "digits_certificate_expiry_timestamp_seconds"
        wait_until(lambda: server.metric(expires) == NOT_AFTER.timestamp())
        wait_until(lambda: served_certificate(address) == new)
        assert client.classify(image_of(3)).digit == 3  # on the connection of before
    assert server.stop() == 0


def test_expired_certificate_shows_its_date(files, authority):
    """A certificate that has expired is read all the same: the date is what the operator must see."""
    past = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    write_certificate(authority, files, "tls", not_after=past)
    assert certificates.expiry(files / "tls.pem", files / "tls.key") == past.timestamp()


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("other key", "tls.pem and .*me.key: "),
        ("no certificate", "tls.pem and .*tls.key: "),
        ("encrypted key", "tls.pem and .*tls.key: "),
        ("no authority", "ca.pem: "),
    ],
)
def test_unusable_files_are_refused(files, fault, named):
    """What could never serve a handshake is refused by name before it is used, without asking for a password."""
    paths = [files / "tls.pem", files / "tls.key", files / "ca.pem"]
    match fault:
        case "other key":
            paths[1] = files / "me.key"
        case "no certificate":
            paths[0].write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        case "encrypted key":
            paths[1].write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        case "no authority":
            paths[2].write_text("")
    with pytest.raises(OSError, match=named):
        certificates.read(paths, [path.read_bytes() for path in paths])


def test_expired_client_is_refused(toy_models, files, authority):
    """A client's certificate that has expired opens nothing."""
    write_certificate(authority, files, "me", not_after=dt.datetime(2020, 1, 2, tzinfo=dt.UTC))
    server, address = start_secure(toy_models, files, f"--tls-client-ca={files / 'ca.pem'}")
    own = [(files / name).read_bytes() for name in ("ca.pem", "me.key", "me.pem")]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(*own)) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=20)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.stop() == 0
