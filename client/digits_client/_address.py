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
        if scheme not in SCHEMES or not colon or _is_host_called(scheme, rest):
            return _checked(server, server)
        if scheme == "xds" or (scheme.startswith("unix") and rest.strip("/")):
            return server
        for address in rest.rpartition("/")[2].split(","):
            _checked(address, server)
        return server
    if not isinstance(server, list | tuple) or not all(isinstance(address, str) for address in server):
        raise ValueError(f"server: {server!r}; {ALLOWED}")
    kinds = {_kind(address) for address in server}
    if len(kinds) != 1 or "" in kinds:
        raise ValueError(
            f"server: {list(server)}; several servers are given as addresses, all IPv4 as in 10.0.0.1:50051 or all "
            "IPv6 as in [::1]:50051; a name with several addresses is given as 'dns:///name:port'"
        )
    return f"{kinds.pop()}:{','.join(_checked(address, address) for address in server)}"


def is_local(server: str | Sequence[str]) -> bool:
    """Return whether all of a checked address, or list, is on this host: no proxy leads there."""
    if isinstance(server, str):
        return server.startswith("unix") or _is_loopback(server)
    return all(map(_is_loopback, server))


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


def _is_host_called(scheme: str, rest: str) -> bool:
    """Return whether `scheme:rest` is a host of that name with its port, such as dns:53."""
    return rest.isdecimal() and not scheme.startswith("unix")


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
    if host.startswith("[") != host.endswith("]"):
        raise ValueError(f"server: {given!r}; {ALLOWED}")
    bare = host.removeprefix("[").removesuffix("]")
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


def _kind(address: str) -> str:
    """Return "ipv4" or "ipv6"; for what is not `address:port`, ""."""
    version = _version(_host(address))
    return f"ipv{version}" if version and address.rpartition(":")[2].isdecimal() and _version(address) != 6 else ""


def _is_loopback(address: str) -> bool:
    host = _host(address.rpartition("/")[2])
    return host == "localhost" or (_version(host) != 0 and ipaddress.ip_address(host).is_loopback)
