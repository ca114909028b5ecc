"""Addresses of servers: checked before anything is sent, and made into what gRPC resolves."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence

SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "xds")
"""Those of gRPC's own name resolvers, https://grpc.github.io/grpc/core/md_doc_naming.html."""
ALLOWED = "allowed are host:port, [IPv6]:port, unix:PATH, dns:///name:port, or a list of IP addresses with ports"
_HOST = re.compile(r"[\w.-]+", re.ASCII)


def target(server: str | Sequence[str]) -> str:
    """Return gRPC's name for one server or several.

    Raises:
        ValueError: It is no address, has no port or an impossible one; or there are several, and not all IPv4 or all
            IPv6 addresses.
    """
    if isinstance(server, str):
        scheme, colon, rest = server.partition(":")
        is_path = scheme.startswith("unix")
        if scheme not in SCHEMES or not colon or (rest.isdecimal() and not is_path):  # such as dns:53, a host's name
            return _checked(server, server)
        if scheme == "xds" or (is_path and rest.strip("/")):
            return server
        for address in rest.rpartition("/")[2].split(","):
            _checked(address, server)
        return server
    if not isinstance(server, list | tuple) or not all(isinstance(address, str) for address in server):
        raise ValueError(f"server: {server!r}; {ALLOWED}")
    checked = [_checked(address, address) for address in server]
    versions = {_version(_host(address)) for address in checked}
    if versions not in ({4}, {6}):
        raise ValueError(
            f"server: {list(server)}; several servers are given as addresses, all IPv4 as in 10.0.0.1:50051 or all "
            "IPv6 as in [::1]:50051; a name with several addresses is given as 'dns:///name:port'"
        )
    return f"ipv{versions.pop()}:{','.join(checked)}"


def is_local(server: str | Sequence[str]) -> bool:
    """Return whether all of a checked address, or list, is on this host: no proxy leads there."""
    addresses = [server] if isinstance(server, str) else server
    return all(address.startswith(("unix:", "unix-abstract:")) or _is_loopback(address) for address in addresses)


def proxy_hint(server: str | Sequence[str]) -> str:
    """Return words on the proxy that gRPC takes to a server, by the environment; empty if there is none."""
    names = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]  # as gRPC reads them
    if not names or is_local(server):
        return ""
    address = server if isinstance(server, str) else server[0]
    host = _host(address.rpartition("/")[2])
    exempt = next(filter(None, map(os.environ.get, ("no_grpc_proxy", "no_proxy"))), "")
    if any(entry.strip() and host.endswith(entry.strip().lstrip("*")) for entry in exempt.split(",")):
        return ""
    return f"through the proxy that {names[0]} names in the environment; no_proxy={host} goes without"


def _checked(address: str, given: str) -> str:
    """Return `host:port`, an IPv6 host in brackets.

    Raises:
        ValueError: It is something else; `given` is what the caller wrote.
    """
    if "://" in address:
        raise ValueError(f"server: {given!r} has a scheme that is none of gRPC's; {ALLOWED}")
    host, colon, port = address.rpartition(":")
    if not colon or _version(address) == 6 or address.endswith("]"):
        raise ValueError(f"server: {given!r} has no port; {ALLOWED}")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ValueError(f"server: {given!r} has the port {port!r}; allowed are 1 to 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _version(bare) == 6:
        return f"[{bare}]:{port}"
    if bare != host or not _HOST.fullmatch(host):
        raise ValueError(f"server: {given!r} has the host {host!r}; {ALLOWED}")
    return address


def _host(address: str) -> str:
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def _version(host: str) -> int:
    """Return 4 or 6 for an IP address, else 0."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def _is_loopback(address: str) -> bool:
    host = _host(address.rpartition("/")[2])
    return host == "localhost" or (_version(host) != 0 and ipaddress.ip_address(host).is_loopback)
