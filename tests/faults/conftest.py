"""Servers to be maltreated."""

import sys
from pathlib import Path

import pytest
from conftest import start_server

sys.path.insert(0, str(Path(__file__).parent))  # for traffic.py, which is not a test


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
