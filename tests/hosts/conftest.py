"""Three hosts on one machine, with a real server on each."""

import contextlib
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import Namespace, network
from packages import write_package

PORT, METRICS_PORT = 50051, 9464


class Host(Namespace):
    """A network namespace in which a server runs."""

    def __init__(self, bridge: str, subnet: str, number: int, folder: Path, flags: list[str]) -> None:
        super().__init__(bridge, subnet, number)
        self.address = f"{self.ip}:{PORT}"
        self.models = folder / f"models-{number}"
        self._log = folder / f"host-{number}.log"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        write_package(self.models / "toy" / "1")

    def start(self) -> None:
        """Start the server."""
        command = (sys.executable, "-m", "digits_server", "--models", str(self.models), "--host=0.0.0.0")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.exec, *command, "--metrics-host=0.0.0.0", "--workers=1", *self._flags],
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def wait(self) -> None:
        """Return when the server is ready."""
        assert self._process
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert b"ready" in line, f"{line!r}\n{self._log.read_text()}"

    def stop(self) -> int:
        """Let the server drain and return its exit status."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        assert self._process.stdout
        self._process.stdout.close()
        return self._process.wait(30)

    def answered(self) -> int:
        """Return how many calls of `Classify` the server has answered, by its own metrics; it must not be cut off."""
        with urllib.request.urlopen(f"http://{self.ip}:{METRICS_PORT}/metrics", timeout=10) as page:
            text = page.read().decode()
        calls = re.findall(r'^grpc_server_handled_total\{(.*grpc_method="Classify".*)\} (\S+)', text, re.MULTILINE)
        return sum(int(float(count)) for labels, count in calls if 'grpc_code="OK"' in labels)

    def close(self) -> None:
        """End the server and the namespace."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()
        super().close()


@pytest.fixture(scope="module")
def bridge() -> Iterator[tuple[str, str]]:
    """What connects the hosts."""
    with network() as bridge:
        yield bridge


@pytest.fixture
def hosts(bridge, transport, tmp_path) -> Iterator[list[Host]]:
    """Three hosts with servers that are ready."""
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in range(3):
            hosts.append(Host(*bridge, number, tmp_path, [f"--transport={transport}"]))
            stack.callback(hosts[-1].close)
        for step in (Host.start, Host.wait):
            for host in hosts:
                step(host)
        yield hosts
