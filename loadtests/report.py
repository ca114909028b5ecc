"""What comes of the levels of a run: where it saturates, a table and a plot of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Levels = Sequence[Mapping[str, Any]]


def saturation(levels: Levels, workload: str) -> Mapping[str, Any]:
    """Return the level at which a workload saturates: where throughput is farthest ahead of latency.

    Both are taken as shares of their range, as in Satopää et al., "Finding a Kneedle in a Haystack", 2011: up to there
    more load is more throughput, from there on it is more waiting.
    """
    levels = [level for level in levels if workload in level["figures"]]
    rates, waits = (_shares([level["figures"][workload][key] for level in levels]) for key in ("rate", "p50_ms"))
    return max(zip(rates, waits, levels, strict=True), key=lambda it: it[0] - it[1])[2]


def _shares(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low or 1) for value in values]


def is_flat(levels: Levels) -> bool:
    """Return whether the last two levels have added less than a tenth to the throughput."""
    rates = [sum(each["rate"] for each in level["figures"].values()) for level in levels]
    return len(rates) > 2 and max(rates[-2:]) < 1.1 * rates[-3]


def table(levels: Levels, *, mark_saturation: bool) -> str:
    """Return the levels as lines for people."""
    lines = [
        f"{'stage':<10} {'users':>5} {'workload':<10} {'rate':>9} {'p50 ms':>8} {'p99 ms':>8} {'errors':>7} {'MB':>6}"
    ]
    for level in levels:
        memory = f"{level['memory_mb']:6.0f}" if "memory_mb" in level else " " * 6
        lines += [
            f"{level['stage']:<10} {level['users']:>5} {name:<10} {each['rate']:>9.0f} "
            f"{each['p50_ms']:>8.3g} {each['p99_ms']:>8.3g} {each['error_share']:>7.2%} {memory}"
            f"{'  saturation' if mark_saturation and level is saturation(levels, name) else ''}"
            for name, each in level["figures"].items()
        ]
    return "\n".join(lines)


def plot(levels: Levels, file: Path) -> None:
    """Draw latency against throughput, a point for each level, with the saturation point marked."""
    import matplotlib as mpl  # noqa: PLC0415 - only this needs it, and the container image does without

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    names = list(dict.fromkeys(name for level in levels for name in level["figures"]))
    figure, every = plt.subplots(1, len(names), figsize=(6.4 * len(names), 4.4), layout="constrained", squeeze=False)
    for name, axes in zip(names, every[0], strict=True):
        points = [(level["users"], level["figures"][name]) for level in levels if name in level["figures"]]
        rates = [figures["rate"] for _, figures in points]
        for key, colour in (("p50_ms", "#27a"), ("p99_ms", "#c63")):
            axes.plot(rates, [figures[key] for _, figures in points], "o-", color=colour, label=key.removesuffix("_ms"))
        for users, figures in points:
            place = figures["rate"], figures["p50_ms"]
            axes.annotate(str(users), place, textcoords="offset points", xytext=(0, -14), ha="center", fontsize=8)
        at = saturation(levels, name)
        best = at["figures"][name]
        axes.axvline(best["rate"], color="black", linestyle=":", linewidth=1)
        title = f"{name}; saturation: {at['users']} at once, {best['rate']:,.0f} calls/s, p50 {best['p50_ms']:.2g} ms"
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="calls/s", ylabel="ms", yscale="log", xlim=(0, None))
        axes.margins(y=0.12)  # room for the labels below the points
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(loc="upper left")
    figure.savefig(file, dpi=110)
    plt.close(figure)
