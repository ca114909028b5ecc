"""Starts a server on a free port, runs Locust against it without its web page, stops the server.

Arguments are handed to Locust, those in DIGITS_SERVER_… variables to the server; the exit status is Locust's.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE / "out"
STOP_S = 30
"""The server drains for 20 s at most."""


def main(arguments: list[str]) -> int:
    """Run a load test and return its exit status."""
    models = HERE.parent / "models"
    bin_folder = Path(sys.executable).parent
    server = subprocess.Popen(  # noqa: S603 - our own command
        [bin_folder / "digits-server", "--models", models, "--port=0", "--metrics-port=0", "--log-level=warning"],
        stdout=subprocess.PIPE,
        text=True,
    )
    OUT.mkdir(exist_ok=True)
    try:
        ready = server.stdout.readline() if server.stdout else ""
        found = re.search(r"gRPC (\S+) .* metrics (\S+),", ready)
        if not found:
            return server.wait(STOP_S) or 1  # it has said why on standard error
        print(ready, end="", flush=True)
        locust = [bin_folder / "locust", "--locustfile", HERE / "locustfile.py", "--host", found[1], "--headless"]
        locust += ["--server-metrics", found[2]]
        files = ["--html", OUT / "report.html", "--results", OUT / "results.json", "--plot", OUT / "saturation.png"]
        locust += ["--only-summary", *files, *arguments]
        return subprocess.run(locust, check=False).returncode  # noqa: S603 - our own command
    finally:
        server.terminate()
        server.wait(STOP_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
