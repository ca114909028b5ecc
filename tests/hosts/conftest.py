"""Three hosts on one machine: network namespaces on a bridge, a real server in each. Wants root, iproute2, iptables."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packages import image_of, write_package

from digits_client import DigitsError

PORT, METRICS_PORT = 50051, 9464


def run(*command: str) -> str:
    """Run a command and return what it printed; on failure say what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Host:
    """A network namespace with an address of its own, in which a server runs."""

    def __init__(self, bridge: str, subnet: str, number: int, folder: Path, flags: list[str]) -> None:
        self.ip = f"{subnet}.{number + 2}"
        self.address = f"{self.ip}:{PORT}"
        self.models = folder / f"models-{number}"
        self._name = f"{bridge}-{number}"
        self._log = folder / f"host-{number}.log"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        write_package(self.models / "toy" / "1")
        run("ip", "netns", "add", self._name)
        run("ip", "link", "add", self._name, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        run("ip", "link", "set", self._name, "master", bridge, "up")
        self._inside("ip", "address", "add", f"{self.ip}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            self._inside("ip", "link", "set", device, "up")
        self._inside("iptables", "-N", "CUT")  # first rule: attempts to connect; second: everything else
        self._inside("iptables", "-A", "CUT", "-p", "tcp", "--syn", "-j", "DROP")
        self._inside("iptables", "-A", "CUT", "-j", "DROP")

    def _inside(self, *command: str) -> str:
        return run("ip", "netns", "exec", self._name, *command)

    def start(self) -> None:
        """Start the server and return when it is ready."""
        command = (sys.executable, "-m", "digits_server", "--models", str(self.models), "--host=0.0.0.0", "--workers=1")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._name, *command, "--metrics-host=0.0.0.0", *self._flags],
                stdout=subprocess.PIPE,
                stderr=log,
            )
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

    def cut(self) -> None:
        """Drop every packet to and from the host, without a word to either side."""
        self._inside("iptables", "-Z", "CUT")
        self._inside("iptables", "-I", "INPUT", "-j", "CUT")
        self._inside("iptables", "-I", "OUTPUT", "-j", "DROP")

    def heal(self) -> None:
        """Let packets pass again."""
        self._inside("iptables", "-D", "INPUT", "-j", "CUT")
        self._inside("iptables", "-D", "OUTPUT", "-j", "DROP")

    def dropped(self) -> int:
        """Return how many packets to the host have been dropped since the cut, attempts to connect left out."""
        rules = self._inside("iptables", "-nvxL", "CUT").splitlines()[2:]
        return int(rules[1].split()[0])

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
        run("ip", "link", "delete", self._name)  # the namespace's end would take it along, but later
        run("ip", "netns", "delete", self._name)


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[str, str]]:
    """Return the name of a bridge, and the first three numbers of the addresses on it; this machine is number 1."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces want root")
    if missing := [tool for tool in ("ip", "iptables") if not shutil.which(tool)]:
        pytest.skip(f"no {' or '.join(missing)} (Debian: apt-get install iproute2 iptables)")
    number = os.getpid() % 200 * 256 + os.getpid() // 200 % 256
    bridge, subnet = f"dg{os.getpid()}", f"10.{100 + number // 256 % 100}.{number % 256}"
    made = subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        run("ip", "address", "add", f"{subnet}.1/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        yield bridge, subnet
    finally:
        run("ip", "link", "delete", bridge)


@pytest.fixture
def hosts(network, transport, tmp_path) -> Iterator[list[Host]]:
    """Three hosts with servers that are ready."""
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in range(3):
            hosts.append(Host(*network, number, tmp_path, [f"--transport={transport}"]))
            stack.callback(hosts[-1].close)
        for host in hosts:
            host.start()
        yield hosts


@pytest.fixture
def free_ports():
    """Return what finds so many free ports."""

    def find(count: int) -> list[int]:
        with contextlib.ExitStack() as sockets:
            bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
            return [each.getsockname()[1] for each in bound]

    return find


@pytest.fixture
def loads() -> type["Load"]:
    """Return what calls a client."""
    return Load


class Load:
    """Threads that call a client, each one call after the other with a small pause, and count what came of it.

    Attributes:
        count: Calls `sent`, by what came of them: `right`, `wrong`, names of errors; and `late`: right, but after more
            than `LATE_S`, because a host had fallen silent with them.
        versions: Calls by the model's version that answered.
        faults: The errors, with the time after which they came.
    """

    LATE_S = 0.9
    PAUSE_S = 0.01

    def __init__(self, client, callers: int = 6) -> None:
        self._client = client
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(callers)]
        self._lock = threading.Lock()
        self.count, self.versions, self.faults = Counter(), Counter(), []

    def _call(self, number: int) -> None:
        image = image_of(number)
        while not self._done.wait(self.PAUSE_S):
            start = time.monotonic()
            outcome, version = "right", ""
            try:
                answer = self._client.classify(image)
            except DigitsError as error:
                outcome = type(error).__name__
                self.faults.append(f"{time.monotonic() - start:.2f} s: {error}")
            else:
                version = answer.version
                outcome = "right" if answer.digit == (number + int(version) - 1) % 10 else "wrong"
            with self._lock:
                self.count["sent"] += 1
                self.count[outcome] += 1
                self.count["late"] += outcome == "right" and time.monotonic() - start > self.LATE_S
                self.versions[version] += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def more(self, calls: int) -> None:
        """Return when so many more calls have ended."""
        end = self.count["sent"] + calls
        while self.count["sent"] < end:
            time.sleep(0.01)
