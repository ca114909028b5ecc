"""The simulation of many hosts: its queues against theory, its callers against the rules of the SDK."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "loadtests"))  # as its users do

from callers import Manners, World
from queueing import Costs

SERVICE_S = 0.001
ONE_BY_ONE = Costs(fixed_s=0, per_call_s=SERVICE_S, max_batch=1, max_queue=10**9)
PATIENT = Manners(timeout_s=1e9, tries=1)


class Exponential(Costs):
    """Service times as in most of queueing theory."""

    CHANCE = random.Random(2)

    def busy_s(self, calls):
        return self.CHANCE.expovariate(1 / self.per_call_s)


def steady(costs, load, hosts=1, policy="random", calls=60_000, **more):
    """Return the mean latency, in service times, of calls by chance; the first tenth is left out."""
    world = World(costs, hosts, policy, manners=PATIENT, **{"channels": 1, **more})
    rate = load * hosts / SERVICE_S
    world.offer(rate, calls / rate)
    settled = world.latencies[len(world.latencies) // 10 :]
    return sum(settled) / len(settled) / SERVICE_S


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_host_with_fixed_times_waits_as_pollaczek_and_khinchine_say(load):
    """M/D/1: the mean wait is load / 2 (1 - load) service times."""
    assert steady(ONE_BY_ONE, load) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_hosts_chosen_at_random_are_queues_of_their_own():
    """M/M/1: a call is there for 1 / (1 - load) service times, however many hosts there are."""
    costs = Exponential(0, SERVICE_S, max_batch=1, max_queue=10**9)
    assert steady(costs, 0.7, hosts=20) == pytest.approx(1 / 0.3, rel=0.05)


def test_the_better_of_two_is_as_good_as_mitzenmacher_says():
    """Many hosts, the shorter of two queues: sum of load^(2^i - 2) service times, i from 1."""
    costs = Exponential(0, SERVICE_S, max_batch=1, max_queue=10**9)
    expected = sum(0.9 ** (2**i - 2) for i in range(1, 10))
    assert steady(costs, 0.9, hosts=100, policy="two_choices", calls=150_000) == pytest.approx(expected, rel=0.05)


def test_policies_rank_as_what_they_know():
    """One that sees all queues beats two choices, that beats taking turns, and that beats chance."""
    policies = ("least_request", "two_choices", "round_robin", "random")
    waits = [steady(Exponential(0, SERVICE_S, 1, 10**9), 0.8, 10, policy, 30_000) for policy in policies]
    assert waits == sorted(waits)


def test_batches_hold_all_who_came_during_the_last():
    """Batches whose time does not depend on their size: who comes waits for half of one, then for his own."""
    assert steady(Costs(SERVICE_S, 0, 10**6, 10**9), 50, calls=60_000) == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("callers", "batch", "takes_s"), [(1, 1, 0.0004), (8, 4, 0.0007), (1000, 64, 0.0067)])
def test_callers_without_pause_get_what_batches_allow(callers, batch, takes_s):
    """One caller gets batches of one; more come in two halves in turn; many fill every batch."""
    world = World(Costs(300e-6, 100e-6), 1, channels=1, manners=PATIENT)
    world.circle(callers, until=2)
    assert len(world.ends) / 2 == pytest.approx(batch / takes_s, rel=0.02)


@pytest.mark.parametrize(
    ("start", "busy_s", "used_s", "end", "used_after_s"),
    [
        (0.0, 0.006, 0.0, 0.006, 0.006),  # just the quota
        (0.001, 0.011, 0.0, 0.025, 0.005),  # all of this period's, and most of the next one's
        (0.010, 0.008, 0.005, 0.041, 0.001),  # a little of this one's, all of the next, the rest
        (0.010, 0.001, 0.006, 0.021, 0.001),  # nothing left here
    ],
)
def test_quota_of_cpu(start, busy_s, used_s, end, used_after_s):
    """A host with 0.3 of a CPU works 6 ms of each 20."""
    costs = Costs(0, 0, cpu=0.3, period_s=0.02)
    assert costs.end(start, busy_s, used_s) == (pytest.approx(end), pytest.approx(used_after_s))


def test_a_full_queue_refuses_and_is_asked_again_after_its_pushback():
    """Ten calls at once on a queue of four: refused ones come back when there is room, and all are answered."""
    world = World(Costs(0, SERVICE_S, 1, max_queue=4), 1, channels=1, manners=Manners(tries=9))
    for _ in range(10):
        world.call()
    assert world.tries == 10
    world.clock.run(1)
    assert len(world.ends) == 10
    assert max(world.ends) == pytest.approx(10 * SERVICE_S, rel=0.5)
    assert world.tries > 10


def test_who_cannot_make_his_deadline_costs_nothing():
    """With admission late calls are refused before they run, without it the host works for nobody."""
    manners = Manners(timeout_s=20.5 * SERVICE_S, tries=1)
    answered = {}
    for admits in (True, False):
        world = World(ONE_BY_ONE, 1, channels=1, manners=manners, admits=admits)
        world.offer(2 / SERVICE_S, 1)
        answered[admits] = len(world.ends) * SERVICE_S
    assert answered[True] > 0.9
    assert answered[False] < 0.1


def test_a_silent_host_is_avoided_once_noticed():
    """Calls to it, those in work too, are tried elsewhere after `notice_s`; from then on nobody asks it."""
    manners = Manners(notice_s=0.5)
    world = World(Costs(0, 0.01, 1), 2, "round_robin", channels=1, manners=manners)
    world.clock.after(1, world.hosts[0].fall_silent)
    world.offer(lambda now: 50 if now < 3 else 1e-9, 4)
    late = [latency for latency in world.latencies if latency > 0.5]
    assert world.failures == []
    assert 5 < len(late) < 25  # half of those in half a second
    assert world.tries == len(world.ends) + len(late)
    assert len(world.ends) == pytest.approx(150, rel=0.2)


def test_what_a_host_has_in_work_goes_silent_with_it():
    """Of two calls, one on each host, the one whose host falls silent is answered by the other, later."""
    world = World(ONE_BY_ONE, 2, "round_robin", channels=1, manners=Manners(notice_s=0.5, backoff_s=0.1))
    world.call()
    world.call()
    world.hosts[0].fall_silent()
    world.clock.run(1)
    assert world.latencies == [pytest.approx(SERVICE_S), pytest.approx(0.6, rel=0.05)]


def test_retries_end_when_half_of_the_tokens_are_gone():
    """Of calls that all fail, as many are retried as cost half of the tokens."""
    manners = Manners(max_tokens=20, notice_s=0.01)
    world = World(ONE_BY_ONE, 1, channels=1, manners=manners)
    world.hosts[0].fall_silent()
    world.offer(1000, 1)
    assert 0 < world.tries - len(world.failures) < 100
