"""Certificates and token files for tests."""

import hashlib


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
