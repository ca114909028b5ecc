"""The admin endpoints: where they listen, and what a refused address is told."""

import gzip
import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from digits_server.config import Config, SettingRefused
from digits_server.metrics.http import AdminServer, scrape


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def serve(host, port=0):
    registry = CollectorRegistry()
    Counter("c", "text", registry=registry)
    config = Config(metrics_host=host, metrics_port=port)
    return AdminServer(config, registry, is_alive=lambda: True, is_ready=lambda: False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::", "::1", "[::]", "[::1]"])
def test_every_spelling_of_a_host_is_served(host):
    """Names, IPv4 and IPv6 addresses, with brackets and without, are listened on; the address fits into a URL."""
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with serve(host) as admin:
        url = f"http://{admin.address.replace('0.0.0.0', '127.0.0.1').replace('[::]', '[::1]')}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=20) as response:
            assert b"c_total 0.0" in response.read()


@pytest.mark.parametrize(
    ("host", "flag", "reason"),
    [
        ("192.0.2.1", "--metrics-host", "Cannot assign requested address"),
        ("not.a.host.invalid", "--metrics-host", "not known"),
        ("127.0.0.1", "--metrics-port", "Address already in use"),
    ],
)
def test_refusal_gives_the_systems_reason(host, flag, reason):
    """Where nobody can listen the setting at fault is named, and why, as the operating system says it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingRefused, match=rf"{flag}: can't listen on {host}:{port}: .*{reason}"):
            serve(host, port)


def test_unix_socket_is_refused():
    """Scrapers and probes ask by HTTP over the network."""
    with pytest.raises(SettingRefused, match="--metrics-host: unix:/x is a Unix socket; allowed are addresses of the"):
        serve("unix:/x", 0)


def test_nobody_to_scrape_is_no_caller_who_has_left():
    """A page that can't be had is an error of its own kind: `ConnectionError`s are taken for callers who have left."""
    with serve("127.0.0.1") as admin:
        host, port = admin.address.split(":")
        assert {family.name for family in scrape(host, int(port))} == {"c"}
    with pytest.raises(RuntimeError, match=rf"no metrics at {host}:{port}: .*refused"):
        scrape(host, int(port))


def test_scrapes_are_compressed_for_those_who_ask():
    """A scraper that takes gzip, as Prometheus does, gets it."""
    with serve("127.0.0.1") as admin:
        request = urllib.request.Request(f"http://{admin.address}/metrics", headers={"accept-encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert response.headers["content-encoding"] == "gzip"
            assert b"c_total 0.0" in gzip.decompress(response.read())
