"""A server's certificate, proved usable before it is used. Not here: when it is exchanged, see security.py."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for: an expired certificate shall show its date too."""


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, PEM."""

    chain: bytes
    key: bytes
    authorities: bytes | None
    """Of clients' certificates; None: who calls is not asked."""
    expires: float
    """When, in seconds since 1970."""

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for grpcio."""
        pair = [(self.key, self.chain)]
        return grpc.ssl_server_certificate_configuration(pair, self.authorities)


def read(paths: Sequence[Path], contents: Sequence[bytes]) -> Certificate:
    """Return what files contain: the chain, its key, and, where clients need certificates too, their authorities.

    Raises:
        OSError: A file can't be read, or OpenSSL finds fault with it (ssl.SSLError is an OSError).
    """
    expires = expiry(*paths[:2])
    for authorities in paths[2:]:
        with _named(authorities):
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(authorities)
    chain, key, *rest = contents
    return Certificate(chain, key, rest[0] if rest else None, expires)


def expiry(certificate: Path, key: Path) -> float:
    """Return when a certificate expires, in seconds since 1970, after a handshake in memory that proves it usable.

    Raises:
        OSError: A file can't be read, they don't belong together, or are not for a server.
    """
    answering = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _named(certificate, key):
        answering.load_cert_chain(certificate, key, password="")  # without one OpenSSL asks on the terminal
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.load_verify_locations(certificate)  # trust just this one, whoever signed it
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(back, there)
    server = answering.wrap_bio(there, back, server_side=True)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return ssl.cert_time_to_seconds(str((client.getpeercert() or {})["notAfter"]))


@contextlib.contextmanager
def _named(*paths: Path) -> Iterator[None]:
    """Have OpenSSL's errors name the files that it finds fault with."""
    try:
        yield
    except ssl.SSLError as error:
        raise OSError(f"{' and '.join(map(str, paths))}: {error}") from error
