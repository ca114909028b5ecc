"""The experiments of docs/scaling.md: prints their tables and draws their plots.

`python loadtests/simulate.py`; `--measure` measures first what the simulated hosts are made of, which wants h2load.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
import pinned
from callers import Manners, World
from queueing import Costs

mpl.use("Agg")
import matplotlib.pyplot as plt

PLOTS = Path(__file__).parent.parent / "docs/images"
COSTS = {"grpcio": Costs(594e-6, 226e-6), "native": Costs(299e-6, 26e-6)}
"""A worker with a CPU of its own, as `--measure` found it."""
CALLS_PER_S = 5e6
SIZES = (("native", 1000), ("native", 330), ("native", 220), ("grpcio", 2500), ("grpcio", 1700))
STEP_S = 0.1
FOREVER = 1e12


def without_pause(costs: Costs, hosts: int, policy: str, callers: int) -> tuple[float, float]:
    """Return the calls a second, and p50 in ms, of callers who call again as soon as they have their answers."""
    world = World(costs, hosts, policy, channels=1, manners=Manners(timeout_s=FOREVER))
    world.circle(callers, until=5)
    return len(world.ends) / 5, percentiles_ms(world, 1)[0]


def fitted(costs: Costs, few: tuple[int, float], many: tuple[int, float]) -> Costs:
    """Return the costs with which a host answers so many callers without pause at so many calls a second."""
    for _ in range(20):
        for (callers, rate), name in ((few, "fixed_s"), (many, "per_call_s")):
            off = without_pause(costs, 1, "random", callers)[0] / rate - 1
            costs = replace(costs, **{name: getattr(costs, name) * (1 + 0.7 * off)})
    return costs


def measure() -> None:
    """Print what a batch and a call cost on one CPU."""
    for transport, costs in COSTS.items():
        with pinned.digits_server(transport, "digits-mlp") as (address, _):
            rates = [
                pinned.load(address, rows=1, clients=4, streams=streams, seconds=4).calls_per_s for streams in (1, 16)
            ]
        print(f"{transport}: {rates} calls/s with 4 and 64 in flight: {fitted(costs, (4, rates[0]), (64, rates[1]))}")


def percentiles_ms(world: World, after: float) -> tuple[float, float]:
    """Return p50 and p99 of the calls that ended after some time."""
    kept = np.array(world.latencies)[np.array(world.ends) >= after]
    p50, p99 = np.percentile(kept, [50, 99]) * 1e3
    return p50, p99


def answered_per_s(world: World, until: float) -> np.ndarray:
    """Return the calls answered in time in each `STEP_S`, as a rate."""
    return np.histogram(world.ends, np.arange(0, until + STEP_S / 2, STEP_S))[0] / STEP_S


def internet_scale(price: float) -> None:
    """Answer 5 M calls/s with more and fewer hosts, each of them simulated."""
    print(f"\n5 M calls/s through one proxy for each ten hosts, two choices; a CPU at {price} $ an hour")
    print("transport   hosts   load   p50 ms   p99 ms    $ an hour   $ a billion calls   calls simulated")
    for transport, hosts in SIZES:
        world = World(COSTS[transport], hosts, channels=hosts // 10)
        world.offer(CALLS_PER_S, 0.15)
        p50, p99 = percentiles_ms(world, 0.05)
        print(
            f"{transport:9s} {hosts:7d} {CALLS_PER_S / world.capacity:6.0%} {p50:8.2f} {p99:8.2f} "
            f"{hosts * price:12,.0f} {hosts * price / CALLS_PER_S / 3600 * 1e9:19.2f} {len(world.latencies):17,d}"
        )


def slices() -> None:
    """Show that a few hosts stand for many, as long as each gets as much."""
    print("\nhosts   p50 ms   p99 ms   (grpcio, two choices, one proxy for each ten hosts, 70 % load)")
    for hosts in (3, 12, 100, 1000):
        world = World(COSTS["grpcio"], hosts, channels=max(1, hosts // 10))
        world.offer(0.7 * world.capacity, 0.3 + 10 / hosts)
        print("{:5d} {:8.2f} {:8.2f}".format(hosts, *percentiles_ms(world, 0.15)))


def balancing(hosts: int, out: Path) -> None:
    """Compare policies by load, for a few proxies that each see much and for many clients that each see little."""
    loads = (0.5, 0.7, 0.8, 0.9)
    print("\np50 / p99 in ms by load, grpcio" + " " * 10 + "".join(f"{load:>16.0%}" for load in loads))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
    for plot, (who, channels) in zip(axes, {"3 proxies": 3, "1,200 clients": 1200}.items(), strict=True):
        for policy in ("random", "round_robin", "two_choices", "least_request"):
            cells = []
            for load in loads:
                world = World(COSTS["grpcio"], hosts, policy, channels)
                world.offer(load * world.capacity, 1.3)
                cells.append(percentiles_ms(world, 0.3))
            print(f"{who:16s}{policy:24s}" + "".join(f"{p50:8.2f} /{p99:6.2f}" for p50, p99 in cells))
            label = policy.replace("_", " ")
            plot.plot([100 * load for load in loads], [p99 for _, p99 in cells], marker="o", label=label)
        plot.set(xlabel="load, % of capacity", title=who)
    axes[0].set(ylabel="p99, ms", ylim=0)
    axes[0].legend()
    figure.savefig(out / "scaling-balancing.png", dpi=80)


def courses(out: Path, xlabel: str, ylabel: str, lines: dict[str, np.ndarray]) -> None:
    """Plot what was answered over time."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, shares in lines.items():
        axes.plot(np.arange(len(shares)) * STEP_S, 100 * shares, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=0)
    axes.legend(fontsize="small")
    figure.savefig(out, dpi=80)


def zone_loss(hosts: int, out: Path) -> None:
    """Let a third of the hosts fall silent at once."""
    print("\na zone of three falls silent after 1 s; the SDK's deadline and retries")
    print(
        "load before   clients   tokens    failed of sent   p99 ms before   after 5 s   back to 95 % of calls after s"
    )
    lines = {}
    for load, channels, tokens in ((0.5, 10, 10), (0.5, 10, 100), (0.5, 200, 100), (0.6, 200, 100), (0.7, 200, 100)):
        world = World(COSTS["grpcio"], hosts, "round_robin", channels * hosts, Manners(max_tokens=tokens))
        for host in world.hosts[: hosts // 3]:
            world.clock.after(1, host.fall_silent)
        world.offer(load * world.capacity, 7)
        shares = answered_per_s(world, 7) / (load * world.capacity)
        back = next((step for step in range(11, 65) if min(shares[step : step + 5]) > 0.95), np.nan) * STEP_S - 1
        before = np.array(world.latencies)[np.array(world.ends) < 1]
        failed, p99 = len(world.failures), percentiles_ms(world, 6)[1]
        print(
            f"{load:11.0%} {world.channels:9d} {tokens:8d} {failed:9d} of {failed + len(world.ends):7d} "
            f"{np.percentile(before, 99) * 1e3:13.1f} {p99:11.1f} {back:10.1f}"
        )
        if channels == 200:
            lines[f"{load:.0%} load"] = shares
    courses(
        out / "scaling-zone-loss.png", "s; a third of the hosts falls silent at 1", "answered, % of calls sent", lines
    )


def wave(capacity: float, now: float) -> float:
    """Return the calls a second offered at a time: for one second twice the capacity."""
    return capacity * (2 if 1 <= now < 2 else 0.7)


def retry_storm(hosts: int, out: Path) -> None:
    """Offer twice the capacity for a second, to clients that retry, with and without what keeps retries in check."""
    print("\ntwice the capacity from 1 s to 2 s, 70 % before and after; deadline 0.5 s, 4 tries, queues of 512 images")
    print(" " * 52 + "answered meanwhile   4 s later   tries a call")
    ours = Manners(timeout_s=0.5)
    eager = replace(ours, max_tokens=FOREVER)
    wild = replace(eager, heeds_pushback=False)
    wildest = replace(wild, repeats_timeouts=True)
    ways: dict[str, tuple[Manners, bool]] = {
        "ours: admission, pushback, throttled retries": (ours, True),
        "without pushback": (replace(ours, heeds_pushback=False), True),
        "without throttling": (eager, True),
        "without pushback and throttling": (wild, True),
        "the same, and timeouts are repeated": (wildest, True),
        "the same, and servers admit everything": (wildest, False),
    }
    lines = {}
    for name, (manners, admits) in ways.items():
        world = World(replace(COSTS["grpcio"], max_queue=512), hosts, channels=hosts, manners=manners, admits=admits)
        world.offer(partial(wave, world.capacity), 6)
        lines[name] = shares = answered_per_s(world, 6) / world.capacity
        tries = world.tries / (len(world.ends) + len(world.failures))
        print(f"{name:52s}{shares[12:20].mean():10.0%} of full {shares[55:].mean() / 0.7:11.0%} {tries:14.2f}")
    courses(
        out / "scaling-retry-storm.png",
        "s; twice the capacity is offered from 1 to 2",
        "answered in time, % of capacity",
        lines,
    )


@click.command()
@click.option("--hosts", default=12, show_default=True, help="Hosts of the slice that stands for many.")
@click.option("--price", default=0.04, show_default=True, help="Of a CPU for an hour, in dollars.")
@click.option("--out", type=click.Path(path_type=Path), default=PLOTS, help="Folder of plots.")
@click.option("--measure", "is_measuring", is_flag=True, help="Measure what the simulated hosts are made of, and end.")
def main(hosts: int, price: float, out: Path, is_measuring: bool) -> None:
    """Run the experiments of docs/scaling.md."""
    if is_measuring:
        measure()
        return
    out.mkdir(parents=True, exist_ok=True)
    for transport, costs in COSTS.items():
        print(f"one {transport} host: {costs.capacity:,.0f} calls/s in full batches")
    internet_scale(price)
    slices()
    balancing(hosts, out)
    zone_loss(hosts, out)
    retry_storm(hosts, out)


if __name__ == "__main__":
    main()
