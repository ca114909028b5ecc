"""Three hosts behind the client's own balancing and behind Envoy: shares, a silent host, a rolling upgrade."""

import contextlib
import logging
import time

import pytest
from conftest import wait_until
from packages import write_package
from proxies import Envoy
from traffic import Traffic

from digits_client import DigitClient

log = logging.getLogger(__name__)

CALLS = 1500
CALLERS = 40
"""Enough that many calls fail at once when a host falls silent: that must not use up what gRPC allows to be retried."""
PAUSE_S = CALLERS / 500
"""At most 500 calls a second: more would tell nothing but what this machine can do."""
BAR_S = 3.0
"""A host that has been silent for so long gets no more calls."""
LATE_S = 0.9
"""On an idle machine, what took longer had gone to a host that fell silent, and was asked again elsewhere."""


@pytest.fixture(params=["client", "envoy"])
def traffic(request, hosts, tmp_path):
    """Yield calls that go on until the end of the test; by then, each has had its right answer."""
    addresses = [host.address for host in hosts]
    with contextlib.ExitStack() as stack:
        envoy = stack.enter_context(Envoy(addresses, tmp_path)) if request.param == "envoy" else None
        client = stack.enter_context(DigitClient(envoy.address if envoy else addresses))
        with Traffic(client, bare=0, sdk=CALLERS, pause_s=PAUSE_S) as traffic:
            wait_until(lambda: all(host.answered() > 20 for host in hosts))
            yield traffic
        retried = {"retried": envoy.stat("upstream_rq_retry")} if envoy else {}  # gRPC does not tell
    late = sum(call.end - call.start > LATE_S for call in traffic.calls)
    counts = {"sent": traffic.sent, **traffic.outcomes, "late": late, **retried}
    log.info("%s: %s", request.node.name, counts)
    assert traffic.faults == []
    assert traffic.outcomes["right"] == traffic.sent


def test_hosts_get_equal_shares(traffic, hosts):
    """Of many calls each of three hosts answers a third, give or take a tenth of it."""
    before = [host.answered() for host in hosts]
    traffic.more(CALLS)
    shares = [host.answered() - earlier for host, earlier in zip(hosts, before, strict=True)]
    log.info("shares: %s", shares)
    assert shares == [pytest.approx(sum(shares) / 3, rel=0.1)] * 3


def test_a_host_that_falls_silent_is_left_and_found_again(traffic, hosts):
    """Packets to a host vanish: no call fails, after three seconds none is sent there, and once it is back some are."""
    hosts[1].cut()
    time.sleep(BAR_S)
    dropped = hosts[1].dropped()
    traffic.more(CALLS)
    assert hosts[1].dropped() == dropped
    hosts[1].heal()
    before = hosts[1].answered()
    wait_until(lambda: hosts[1].answered() > before + 20)


def test_rolling_upgrade(traffic, hosts):
    """Host after host is restarted with a new version of the model: no call fails, and in the end only it answers."""
    for host in hosts:
        write_package(host.models / "toy" / "2", shift=1)
        assert host.stop() == 0
        host.start()
        host.wait()
        wait_until(lambda host=host: host.answered() > 20)
    traffic.more(CALLERS)  # those who were answered by the last of the old ones
    before = traffic.versions["1"]
    traffic.more(CALLS)
    assert traffic.versions["1"] == before
