"""Debian's Chromium, for tests and figures."""

from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
# For root in a container, on a machine without a display; and without the calls home that a browser makes by itself.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def launch(playwright):
    """Return a headless browser."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
