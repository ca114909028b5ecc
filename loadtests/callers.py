"""Simulated callers who retry, and balancers that know little, in front of simulated hosts.

Each knows what the real one knows: a balancer only what it has sent itself, a caller only what became of its calls.
`simulate.py` asks what many hosts would do, `hosts_check.py` compares a few with real ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from queueing import Call, Clock, Costs, Host


@dataclass(frozen=True)
class Manners:
    """How callers behave; the retries are those of the SDK, and of gRPC below it."""

    timeout_s: float = 5.0
    tries: int = 4
    backoff_s: float = 0.05
    heeds_pushback: bool = True
    max_tokens: float = 100.0
    """Of a channel: a failure takes one, an answer gives a tenth back; with half of them or less nothing is retried."""
    repeats_timeouts: bool = False
    """Whether who has waited in vain asks again, as if nothing had been. The SDK does not."""
    notice_s: float = 1.5
    """Time until calls to a silent host fail; its balancer avoids it from then on."""


class Channel:
    """A client's, or a proxy's, view of the hosts: what it has sent where, whom it avoids, whether it may retry.

    Args:
        hosts: All of them.
        policy: `random`, `round_robin`, `two_choices` (of two at random the one with fewer calls of ours) or
            `least_request` (the same of all).
        rng: Where chance comes from.
        tokens: Of `Manners`.
    """

    def __init__(self, hosts: list[Host], policy: str, rng: random.Random, tokens: float) -> None:
        self._fit, self._rng, self.tokens = rng.sample(hosts, len(hosts)), rng, tokens
        self._out = dict.fromkeys(hosts, 0)
        self._turn = 0
        self._pick: Callable[[], Host] = getattr(self, f"_{policy}")

    def _random(self) -> Host:
        return self._fit[int(self._rng.random() * len(self._fit))]

    def _round_robin(self) -> Host:
        self._turn += 1
        return self._fit[self._turn % len(self._fit)]

    def _two_choices(self) -> Host:
        return min(self._random(), self._random(), key=self._out.__getitem__)

    def _least_request(self) -> Host:
        least = min(self._out[host] for host in self._fit)
        return self._rng.choice([host for host in self._fit if self._out[host] == least])

    def send(self, call: Call) -> None:
        """Send a call to a host."""
        call.host = self._pick()
        self._out[call.host] += 1
        call.host.submit(call)

    def over(self, call: Call) -> None:
        """Learn that a call has ended."""
        call.is_over = True
        self._out[call.host] -= 1

    def avoid(self, host: Host) -> None:
        """Send nothing more to a host, unless it is the last."""
        if host in self._fit and len(self._fit) > 1:
            self._fit.remove(host)


@dataclass
class World:
    """Callers, channels and hosts, and what came of the calls. Times are in seconds."""

    costs: Costs
    size: int
    """Hosts."""
    policy: str = "two_choices"
    channels: int = 30
    """Over which the calls are spread in turn."""
    manners: Manners = field(default_factory=Manners)
    admits: bool = True
    tries: int = field(default=0, init=False)
    ends: list[float] = field(default_factory=list, init=False)
    """When each call ended that was answered in time."""
    latencies: list[float] = field(default_factory=list, init=False)
    """How long each of those took, with its retries."""
    failures: list[float] = field(default_factory=list, init=False)
    """When each call failed for good."""

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.rng = random.Random(1)  # noqa: S311 - chance, not secrets
        self.hosts = [Host(self.clock, self.costs, self._done, admits=self.admits) for _ in range(self.size)]
        self._channels = [
            Channel(self.hosts, self.policy, self.rng, self.manners.max_tokens) for _ in range(self.channels)
        ]
        self._turn = 0

    def call(self, then: Callable[[], None] = lambda: None) -> None:
        """Make a call over the next channel, retry it as its caller would, and say when it has ended."""
        self._turn += 1
        channel = self._channels[self._turn % self.channels]
        self._try(channel, self.clock.now, self.manners.tries, then)

    def _try(self, channel: Channel, born: float, tries_left: int, then: Callable[[], None]) -> None:
        self.tries += 1
        repeats, timeout_s = self.manners.repeats_timeouts, self.manners.timeout_s
        call = Call(born, (self.clock.now if repeats else born) + timeout_s, tries_left - 1, channel, then)
        channel.send(call)
        if repeats:
            self.clock.after(timeout_s, self._done, call, "late", 0.0)

    def _done(self, call: Call, status: str, pushback_s: float) -> None:
        now, manners, channel = self.clock.now, self.manners, call.channel
        if call.is_over:
            return
        if status == "vanished":
            self.clock.after(manners.notice_s, self._done, call, "gone", 0.0)
            return
        channel.over(call)
        if status == "gone":
            channel.avoid(call.host)
        if status == "ok":
            channel.tokens = min(manners.max_tokens, channel.tokens + 0.1)
            self.ends.append(now)
            self.latencies.append(now - call.born)
        else:
            channel.tokens = max(0.0, channel.tokens - 1)
            delay_s = manners.backoff_s * 2 ** (manners.tries - call.tries_left - 1) * self.rng.uniform(0.8, 1.2)
            if status == "full" and manners.heeds_pushback:
                delay_s = max(pushback_s, 0.001)
            is_useful = manners.repeats_timeouts or (status != "late" and now + delay_s < call.deadline)
            if call.tries_left and is_useful and channel.tokens > manners.max_tokens / 2:
                self.clock.after(delay_s, self._try, channel, call.born, call.tries_left, call.then)
                return
            self.failures.append(now)
        call.then()

    @property
    def capacity(self) -> float:
        """Calls a second of all hosts in full batches."""
        return self.costs.capacity * self.size

    def offer(self, rate: float | Callable[[float], float], until: float) -> None:
        """Let calls come by chance, so many a second over all, or `rate(now)`, and run."""

        def arrive() -> None:
            self.call()
            self.clock.after(self.rng.expovariate(rate(self.clock.now) if callable(rate) else rate), arrive)

        arrive()
        self.clock.run(until)

    def circle(self, callers: int, until: float) -> None:
        """Let so many callers call one after the other, without pause, and run."""

        def again() -> None:
            self.call(lambda: self.clock.after(0, again))

        for _ in range(callers):
            self.clock.after(0, again)
        self.clock.run(until)
