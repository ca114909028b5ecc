"""What is wanted of a measurement, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass
class Bar:
    """One line of the table."""

    workload: str
    transport: str
    measured: float
    limit: float
    ratio: float
    bar: str
    passed: bool


def at_least(workload: str, transport: str, measured: float, limit: float, share: float) -> Bar:
    """Return the verdict on a throughput that should reach a share of its limit."""
    return Bar(workload, transport, measured, limit, measured / limit, f">= {share}", bool(measured >= share * limit))


def at_most(workload: str, transport: str, measured: float, limit: float, share: float) -> Bar:
    """Return the verdict on a cost that should not exceed so many times its limit."""
    return Bar(workload, transport, measured, limit, measured / limit, f"<= {share}", bool(measured <= share * limit))


def show(bars: list[Bar]) -> None:
    """Print the table."""
    click.echo(f"{'workload':<50} {'transport':<9} {'measured':>10} {'limit':>10} {'ratio':>6}  bar")
    for bar in bars:
        figures = " ".join(f"{number:>10.{0 if number >= 100 else 2}f}" for number in (bar.measured, bar.limit))
        figures += f" {bar.ratio:>6.2f}"
        click.echo(f"{bar.workload:<50} {bar.transport:<9} {figures}  {bar.bar} {'pass' if bar.passed else 'MISS'}")
