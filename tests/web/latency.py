"""Measures the page's updates: from looking at the drawing until the bars have their new height, in the browser.

python tests/web/latency.py [URL] [ROUNDS]
"""

import statistics
import sys

from chromium import launch
from playwright.sync_api import sync_playwright
from strokes import DIGITS, draw

NOTE_EACH = """() => {
  window.updates = [];
  new MutationObserver(() => window.updates.push(Number(document.body.dataset.lastMs)))
    .observe(document.body, { attributeFilter: ["data-last-ms"] });
}"""


def main(url="http://127.0.0.1:8080", rounds="3"):
    """Draw the ten digits a few times and print how the updates went."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        page.goto(url)
        page.locator("[data-state=ready]").wait_for()
        draw(page, DIGITS[0])  # the first calls open the connections
        page.evaluate(NOTE_EACH)
        for _ in range(int(rounds)):
            for strokes in DIGITS.values():
                page.locator("#clear").click()
                draw(page, strokes)
        updates = page.evaluate("window.updates")
        browser.close()
    cuts = statistics.quantiles(updates, n=100)
    print(f"{len(updates)} updates: p50 {cuts[49]:.1f} ms, p90 {cuts[89]:.1f} ms, p99 {cuts[98]:.1f} ms")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
