"""What the tests of security share."""

import sys
from pathlib import Path

import pytest
import trustme

sys.path.append(str(Path(__file__).parent))  # for the modules that are not tests; last: `conftest` stays the outer one

from credentials import write_certificate


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path) -> Path:
    """A folder with ca.pem, the server's tls.pem and tls.key, and a client's me.pem and me.key."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write_certificate(authority, tmp_path, "tls")
    write_certificate(authority, tmp_path, "me")
    return tmp_path
