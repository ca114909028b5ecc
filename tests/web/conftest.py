"""A real `digits-web` process in front of a real server, and a real browser."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT, start_server
from playwright.sync_api import expect, sync_playwright

sys.path.append(str(Path(__file__).parent))  # for the modules that are not tests; last: `conftest` stays the outer one

from chromium import CHROMIUM, launch
from gateways import start_gateway


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """A server of the shipped models, for all tests that leave it as it was."""
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("server"))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def gateway(shipped):
    """A gateway in front of it."""
    gateway = start_gateway(f"--server={shipped.address}", f"--metrics-url={shipped.metrics_url}/metrics")
    yield gateway
    assert gateway.stop() == 0


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. Its driver keeps an event loop running, so modules with this fixture have no async tests."""
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM} (Debian: apt-get install chromium)")
    expect.set_options(timeout=30_000)  # its own 5 s are few on a busy machine
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Return what opens a page; at the end none may have complained, nor asked for anything from elsewhere."""
    contexts, complaints = [], []

    def visit(url, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # A browser notes each answer of 4xx and 5xx by itself; those are what some tests are about.
        page.on(
            "console",
            lambda line: (
                line.type in {"error", "warning"}
                and "Failed to load resource" not in line.text
                and complaints.append(line.text)
            ),
        )
        page.on("request", lambda request: request.url.startswith((url, "blob:")) or complaints.append(request.url))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
