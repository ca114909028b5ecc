"""Servers to be maltreated."""

import pytest
from conftest import start_server


@pytest.fixture
def start(toy_models, tmp_path, transport):
    """Start servers, with two workers unless told otherwise; those that still run are ended after the test."""
    servers = []

    def start(*flags, models=toy_models):
        flags = ["--default-model=toy-a", f"--transport={transport}", "--workers=2", *flags]
        servers.append(start_server(models, tmp_path, *flags))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture
def saw(record_property):
    """Return what checks how calls ended: each that was sent did, right or with one of these statuses."""

    def saw(traffic, *statuses, who="callers"):
        record_property(who, f"{traffic.sent} sent: {told(traffic.outcomes)}")
        assert traffic.outcomes.total() == traffic.sent
        assert set(traffic.outcomes) <= {"right", *statuses}

    return saw


def told(outcomes):
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())


def pytest_terminal_summary(terminalreporter):
    """Show what callers saw of each fault."""
    terminalreporter.section("what callers saw")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for who, outcomes in report.user_properties:
            terminalreporter.line(f"{report.nodeid.rpartition('::')[2]}: {who}: {outcomes}")
