"""Three hosts behind the client's own balancing and behind Envoy: shares, a silent host, a rolling upgrade."""

import json
import logging
import subprocess
import time
import urllib.request
from functools import partial

import pytest
import yaml
from conftest import ROOT
from packages import write_package

from digits_client import DigitClient

log = logging.getLogger(__name__)

CALLS = 1500
PATIENCE_S = 60
"""For what takes seconds on an idle machine."""
BAR_S = 3.0
"""A host that has been silent for so long gets no more calls."""


class Envoy:
    """A real Envoy on the configuration for Kubernetes, with the hosts' addresses instead of their common name."""

    ADMIN = "http://127.0.0.1"

    def __init__(self, addresses, port, admin_port, folder):
        config = yaml.safe_load((ROOT / "deploy/kubernetes/base/envoy.yaml").read_text())
        config["admin"]["address"]["socket_address"]["port_value"] = admin_port
        listeners, clusters = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
        del listeners[1], clusters[1]  # the pages for probes and Prometheus
        listeners[0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
        clusters[0] |= {"type": "STATIC"}
        endpoint = clusters[0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        assert endpoint["address"]["socket_address"] == {"address": "digits-server-hosts", "port_value": 50051}
        clusters[0]["load_assignment"]["endpoints"] = [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": int(number)}}}}
                ]
            }
            for ip, number in (address.split(":") for address in addresses)
        ]
        self.address, self._admin = f"127.0.0.1:{port}", f"{self.ADMIN}:{admin_port}"
        (folder / "envoy.json").write_text(json.dumps(config))
        with (folder / "envoy.log").open("w") as out:
            self._process = subprocess.Popen(
                ["envoy", "-c", folder / "envoy.json", "--concurrency", "1", "--use-dynamic-base-id"], stderr=out
            )
        self._hosts = len(addresses)

    def __enter__(self):
        eventually(lambda: self.stat("membership_healthy") == self._hosts)
        return self

    def stat(self, name):
        """Return one figure about the hosts."""
        try:
            with urllib.request.urlopen(f"{self._admin}/stats?filter=^cluster.digits.{name}$", timeout=10) as page:
                return int(page.read().split()[-1])
        except (OSError, IndexError):
            return 0

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)


def eventually(is_true):
    """Return when something is true; the test's timeout is the limit."""
    until = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(params=["client", "envoy"])
def front(request, hosts, free_ports, tmp_path):
    """Yield what stands before the hosts: the address or addresses that a client is given, and how to count retries."""
    addresses = [host.address for host in hosts]
    if request.param == "client":
        yield addresses, lambda: "unknown"
        return
    with Envoy(addresses, *free_ports(2), tmp_path) as envoy:
        yield envoy.address, partial(envoy.stat, "upstream_rq_retry")


@pytest.fixture
def load(request, front, hosts, loads):
    """Yield calls that go on until the end of the test; by then, each has had its right answer."""
    addresses, retries = front
    with DigitClient(addresses) as client, loads(client) as load:
        eventually(lambda: all(host.answered() > 20 for host in hosts))
        yield load
    log.info("%s: %s, retried by Envoy: %s", request.node.name, dict(load.count), retries())
    assert load.faults == []
    assert load.count["right"] == load.count["sent"]


def test_hosts_get_equal_shares(load, hosts):
    """Of many calls each of three hosts answers a third, give or take a tenth of it."""
    before = [host.answered() for host in hosts]
    start = time.monotonic()
    load.more(CALLS)
    elapsed_s = time.monotonic() - start
    shares = [host.answered() - earlier for host, earlier in zip(hosts, before, strict=True)]
    log.info("shares %s, %.0f calls/s", shares, sum(shares) / elapsed_s)
    assert shares == [pytest.approx(sum(shares) / 3, rel=0.1)] * 3


def test_a_host_that_falls_silent_is_left_and_found_again(load, hosts):
    """Packets to a host vanish: no call fails, after three seconds none is sent there, and once it is back some are."""
    hosts[1].cut()
    time.sleep(BAR_S)
    dropped = hosts[1].dropped()
    load.more(CALLS)
    assert hosts[1].dropped() == dropped
    hosts[1].heal()
    before = hosts[1].answered()
    eventually(lambda: hosts[1].answered() > before + 20)


def test_rolling_upgrade(load, hosts):
    """Host after host is restarted with a new version of the model: no call fails, and in the end only it answers."""
    for host in hosts:
        write_package(host.models / "toy" / "2", shift=1)
        assert host.stop() == 0
        host.start()
        eventually(lambda host=host: host.answered() > 20)
    before = load.versions["1"]
    load.more(CALLS)
    assert load.versions["1"] == before
    assert load.versions["2"] >= CALLS
