"""Certificates and token files for tests."""

import hashlib
import time
import urllib.request


def entry(name, token, scopes=("classify",), **more):
    """Return an entry of a token file."""
    lines = [f"[{name}]", f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"', f"scopes = {list(scopes)}"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items())]) + "\n"


def write_certificate(authority, folder, name, **more):
    """Write a new certificate for localhost and its key; return the certificate, PEM."""
    certificate = authority.issue_cert("localhost", **more)
    certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return certificate.cert_chain_pems[0].bytes().decode()


def metric(server, name):
    """Return the value of one sample of the server's metrics, 0 if it isn't there."""
    with urllib.request.urlopen(f"{server.metrics_url}/metrics", timeout=20) as page:
        lines = [line.rpartition(" ") for line in page.read().decode().splitlines()]
    return sum(float(value) for sample, _, value in lines if sample == name)


def wait_until(is_so):
    """Return as soon as something is so; fail if that takes too long."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)
