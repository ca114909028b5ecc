"""What tests share: toy model packages, real server processes, time that runs as fast as the test."""

import asyncio
import gzip
import hashlib
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parent))  # for packages.py, which is not a test

from packages import write_package

from digits_server.config import Config
from digits_server.rpc import fronts

ROOT = Path(__file__).parent.parent


class DrivenLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it; it counts its turns."""

    class _Selector(selectors.DefaultSelector):
        loop: "DrivenLoop"

        def select(self, timeout=None):
            ready = super().select(0)
            if not ready and timeout:
                self.loop.now += timeout
            self.loop.turns += 1
            return ready

    def __init__(self):
        self.now, self.turns = 0.0, 0
        selector = self._Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.now


def pytest_asyncio_loop_factories(item):
    """Run tests marked `driven_clock` on a `DrivenLoop`, others on asyncio's own."""
    if item.get_closest_marker("driven_clock"):
        return {"driven": DrivenLoop}
    return {"asyncio": asyncio.new_event_loop}


@dataclass
class ServerProcess:
    """A running `digits-server`."""

    process: subprocess.Popen
    address: str
    metrics_url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def memory_mb(self) -> float:
        """Megabytes that its processes hold."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in (self.process.pid, *self.children())]
        return sum(int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) for status in statuses) / 1000

    def metric(self, name: str) -> float:
        """Return the sum of all samples whose name and labels begin so."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=20) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def children(self) -> list[int]:
        """Return the process ids of the supervisor's children, sorted."""
        pid = self.process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    @property
    def serving(self) -> int:
        """The process id of the first process that serves: a child, unless the server serves alone."""
        return next(iter(self.children()), self.process.pid)

    def workers(self) -> list[int]:
        """Return the children, once all of them serve; until then nothing."""
        children = self.children()
        return children if self.metric("digits_workers_ready") == len(children) else []

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def start_server(models: Path, folder: Path, *flags: str) -> ServerProcess:
    """Start a server on free ports and return when it says that it is ready."""
    log_file = folder / f"server-{len(list(folder.glob('server-*.log')))}.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "digits_server",
                "--models",
                models,
                "--port=0",
                "--metrics-port=0",
                "--workers=1",
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process.stdout as output:
        line = output.readline()
    ready = re.search(r"ready: gRPC (\S+) \(\w+\), metrics (\S+)/metrics", line)
    if not ready:
        process.kill()
        process.wait()
        pytest.fail(f"{line}\n{log_file.read_text()}")
    return ServerProcess(process, ready[1], ready[2], log_file)


def wait_until(condition, timeout_s: float = 60) -> None:
    """Return once something is true that happens in another process or thread."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        threading.Event().wait(0.02)


def mnist_test_set() -> tuple[np.ndarray, np.ndarray]:
    """Return the (10000, 784) uint8 images of MNIST's test set and their (10000,) labels."""
    folder = ROOT / "tests/data/mnist"
    images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 784), labels


@pytest.fixture(scope="session")
def toy_models(tmp_path_factory) -> Path:
    """A repository with toy-a/1, toy-a/2 (answers the next digit) and toy-b/1."""
    root = tmp_path_factory.mktemp("models")
    write_package(root / "toy-a" / "1")
    write_package(root / "toy-a" / "2", shift=1)
    write_package(root / "toy-b" / "1")
    return root


@pytest.fixture(scope="session", params=["grpcio", "envoy"])
def transport(request) -> str:
    """Both transports, one after the other: what they promise is the same."""
    if request.param == "envoy" and (reason := fronts.obstacle_to_envoy(Config())):
        pytest.skip(f"envoy {reason}")
    return request.param


@pytest.fixture(scope="session")
def server(toy_models, tmp_path_factory, transport) -> Iterator[ServerProcess]:
    """One real server on the toy models, for all tests that leave it as it was."""
    flags = ["--default-model=toy-b", f"--transport={transport}"]
    server = start_server(toy_models, tmp_path_factory.mktemp("server"), *flags)
    yield server
    assert server.stop() == 0


@pytest.fixture
def guarded(toy_models, tmp_path) -> Iterator[tuple[str, list[str], list[str]]]:
    """A server of mTLS and tokens: its address, flags that know it and bear a token, and those of a certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    digest = hashlib.sha256(b"secret").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[me]\nsha256 = "{digest}"\nscopes = ["classify"]\n')
    pair = [f"--tls-cert={tmp_path}/both.pem", f"--tls-key={tmp_path}/both.pem"]
    flags = ["--default-model=toy-b", f"--tls-client-ca={tmp_path}/ca.pem", f"--token-file={tmp_path}/tokens.toml"]
    server = start_server(toy_models, tmp_path, *flags, *pair)
    yield f"localhost:{server.address.rpartition(':')[2]}", [f"--tls-ca={tmp_path}/ca.pem", "--token=secret"], pair
    assert server.stop() == 0
