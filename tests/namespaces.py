"""Hosts on one machine: network namespaces on a bridge. Where root, iproute2 or iptables lack, tests skip."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest


def run(*command: str) -> str:
    """Run a command and return what it printed; on failure say what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def network() -> Iterator[tuple[str, str]]:
    """Yield the name of a bridge, and the first three numbers of the addresses on it; this machine is number 1."""
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


class Namespace:
    """A network namespace with an address of its own, which is `number` + 2 on a bridge."""

    def __init__(self, bridge: str, subnet: str, number: int) -> None:
        self.ip = f"{subnet}.{number + 2}"
        self._name = f"{bridge}-{number}"
        self.exec = ("ip", "netns", "exec", self._name)
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
        return run(*self.exec, *command)

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

    def kill(self) -> None:
        """End all that runs in it, as a power cut would."""
        while pids := run("ip", "netns", "pids", self._name).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)  # what is killed takes a moment to be gone

    def close(self) -> None:
        """End it and all that runs in it."""
        self.kill()
        run("ip", "link", "delete", self._name)  # the namespace's end would take it along, but later
        run("ip", "netns", "delete", self._name)
