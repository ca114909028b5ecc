"""The containers, for real: needs a Docker-compatible engine (`engine.sh` makes one), and skips where there is none."""

import contextlib
import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, mnist_test_set

from digits_client import DigitClient

BIN = Path(sys.executable).parent
PORTS = ("GRPC_PORT", "WEB_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "LOCUST_PORT")
PATIENCE_S = 60
"""For what takes seconds on an idle machine."""

pytestmark = pytest.mark.timeout(900)  # a first build installs all packages


def run(*command, check=True, **kwargs):
    """Run a command and return what it printed; on failure say what it printed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def eventually(get, is_right):
    """Return what `get` gives as soon as it is right; fail if that takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not is_right(value := get()):
        assert time.monotonic() < end, f"still {value!r}"
        time.sleep(0.2)
    return value


def engine(method, path):
    """Ask the engine itself: Compose can't kill one container of several."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
        client = http.client.HTTPConnection("localhost")
        client.sock = connection
        client.request(method, path)
        answer = client.getresponse()
        assert answer.status < 300, answer.read()


def free_ports(count):
    with contextlib.ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


@contextlib.contextmanager
def health_checks(project):
    """Run the containers' health checks: podman leaves that to systemd, which containers and CI rarely have."""
    done = threading.Event()

    def check():
        while not done.wait(0.5):
            containers = run("podman", "ps", "-q", "--filter", f"label=com.docker.compose.project={project}").stdout
            for container in containers.split():
                run("podman", "healthcheck", "run", container, check=False)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Stack:
    """The services of docker-compose.yml, under a project and ports of their own."""

    def __init__(self):
        self.project = f"digits-test-{os.getpid()}"
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        environment = {**os.environ, **{name: str(port) for name, port in self.ports.items()}}
        command = (BIN / "docker-compose", "--project-name", self.project, "--profile", "load")
        self.compose = partial(run, *command, env=environment)
        self.is_podman = "podman" in os.environ.get("DOCKER_HOST", "")
        self.services = json.loads(self.compose("config", "--format=json").stdout)["services"]

    def build(self):
        """Build the images, and leave Grafana out where its image can't be had."""
        if self.compose("pull", "--quiet", "--policy=missing", "grafana", check=False).returncode:
            del self.services["grafana"]
        if not self.is_podman:
            self.compose("build")
            return
        # Asked over its socket, podman leaves HEALTHCHECK out of what it builds.
        for image, target in {(it["image"], it["build"]["target"]) for it in self.services.values() if "build" in it}:
            run(
                "podman",
                "build",
                "--pull=never",
                "--format=docker",
                f"--target={target}",
                "--tag",
                f"docker.io/library/{image}",
                ".",
            )

    def up(self):
        """Start the services and wait until they are healthy."""
        with health_checks(self.project) if self.is_podman else contextlib.nullcontext():
            self.compose("up", "--detach", "--no-build", "--wait", f"--wait-timeout={PATIENCE_S}", *self.services)

    def containers(self, service):
        """Return the states of a service's containers, as `docker compose ps` tells them."""
        return [json.loads(line) for line in self.compose("ps", "--all", "--format=json", service).stdout.splitlines()]

    def query(self, promql):
        """Return the value of a PromQL expression that gives one, or 0 if it gives none yet."""
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query?query={urllib.parse.quote(promql)}"
        with urllib.request.urlopen(url, timeout=10) as page:
            result = json.load(page)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0


@pytest.fixture(scope="module")
def stack():
    """The running stack."""
    stack = Stack()
    asked = stack.compose("ps", check=False)
    if asked.returncode:
        pytest.skip(f"no Docker-compatible engine: {asked.stderr.strip().splitlines()[-1]}")
    stack.build()
    try:
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes")


@pytest.fixture(scope="module")
def mnist():
    """Some MNIST test images, (500, 784) uint8, and their labels."""
    images, labels = mnist_test_set()
    return images[:500], labels[:500]


def test_compose_file_is_valid():
    """Docker Compose takes docker-compose.yml and .env as they are shipped."""
    run(BIN / "docker-compose", "--profile", "load", "config", "--quiet")


def test_dockerfile_is_clean():
    """The Dockerfile follows the rules of hadolint."""
    run(BIN / "hadolint", "Dockerfile")


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: apt-get install prometheus)")
def test_prometheus_configuration_is_valid():
    """Prometheus takes its configuration."""
    run("promtool", "check", "config", "deploy/prometheus/prometheus.yml")


def test_ports_are_published_to_this_machine_only():
    """No service of the stack can be reached from other machines."""
    services = json.loads(run(BIN / "docker-compose", "--profile", "load", "config", "--format=json").stdout)[
        "services"
    ]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == len(PORTS)
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_digits_are_recognised_through_envoy(stack, mnist):
    """A client outside gets the right digits from both servers, and Prometheus counts each of its calls and images."""
    images, labels = mnist
    with DigitClient(f"127.0.0.1:{stack.ports['GRPC_PORT']}") as client:
        assert [client.classify(image).digit for image in images[:20]] == labels[:20].tolist()
        assert np.mean(client.classify_many(images).digits == labels) > 0.95
    calls = 'grpc_server_handled_total{grpc_method="Classify",grpc_code="OK"}'
    eventually(lambda: stack.query(f"sum({calls})"), lambda count: count == 21)
    eventually(lambda: stack.query("sum(digits_predictions_total)"), lambda count: count == 20 + len(images))
    assert stack.query(f"count(sum by (instance) ({calls}) > 0)") == 2


def test_page_reaches_the_server_by_its_name(stack, mnist):
    """The web page is served on its published port, and its API answers with the server's digits and figures."""
    images, labels = mnist
    url = f"http://127.0.0.1:{stack.ports['WEB_PORT']}"
    with urllib.request.urlopen(url, timeout=10) as page:
        assert "<title>Digits</title>" in page.read().decode()
    request = urllib.request.Request(
        f"{url}/api/classify", images[0].tobytes(), {"content-type": "application/octet-stream"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["digit"] == labels[0]

    def figures():
        with urllib.request.urlopen(f"{url}/api/stats", timeout=10) as answer:
            return json.load(answer)

    eventually(figures, lambda stats: stats["queue_depth"] == 0 and "p50" in stats["latency_s"])


def test_server_container_is_locked_down(stack):
    """The server runs as nobody in particular, can write nowhere it ships, and has neither TensorFlow nor pip."""
    script = (
        "import importlib.util, json, os;"
        "print(json.dumps([os.getuid(), os.access('/app', os.W_OK), bool(os.statvfs('/').f_flag & os.ST_RDONLY),"
        " [name for name in ('tensorflow', 'keras', 'pip', 'hatchling') if importlib.util.find_spec(name)],"
        " [line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff')]]))"
    )
    user, can_write, is_read_only, found, capabilities = json.loads(
        stack.compose("exec", "-T", "server", "python", "-c", script).stdout
    )
    assert (user, can_write, is_read_only, found) == (10001, False, True, [])
    assert int(capabilities[0], 16) == 0


def test_load_can_be_started_from_the_web_page(stack):
    """Locust's web page starts users on both workers, which send calls of each kind without a failure."""
    url = f"http://127.0.0.1:{stack.ports['LOCUST_PORT']}"

    def ask(path, data=None):
        with urllib.request.urlopen(url + path, data, timeout=10) as page:
            return json.load(page)

    def state():
        with contextlib.suppress(OSError):  # the page comes up after its container
            return ask("/stats/requests")

    def calls(stats):
        return {row["name"]: row["num_requests"] for row in stats["stats"]}

    eventually(state, lambda stats: stats and len(stats["workers"]) == 2)
    with urllib.request.urlopen(url, timeout=10) as page:
        assert "UnaryUser" in page.read().decode()
    assert ask("/swarm", b"user_count=10&spawn_rate=10&user_classes=UnaryUser&user_classes=BatchUser")["success"]
    stats = eventually(state, lambda stats: {"unary", "batch-64"} <= {name for name, n in calls(stats).items() if n})
    assert stats["errors"] == []
    assert {worker["user_count"] for worker in stats["workers"]} == {5}
    ask("/stop", b"")


def test_no_call_fails_while_others_restart(stack, mnist):
    """When a container starts, names may have no address for a moment: Envoy goes on with the servers it knows."""
    images, labels = mnist
    answers = []
    (container, _) = stack.containers("locust-worker")
    with DigitClient(f"127.0.0.1:{stack.ports['GRPC_PORT']}") as client, ThreadPoolExecutor(1) as threads:
        for _ in range(5):
            restart = threads.submit(engine, "POST", f"/containers/{container['ID']}/restart?t=1")
            looked_up = time.monotonic() + 3  # Envoy asks for the addresses every second
            while not restart.done() or time.monotonic() < looked_up:
                number = len(answers) % len(images)
                answers.append(client.classify(images[number]).digit == labels[number])
            restart.result()
    assert np.mean(answers) > 0.95


def test_no_call_fails_when_a_server_is_killed(stack, mnist, record_property):
    """One of two servers dies at once, under load: clients notice nothing, and Envoy takes the next one in."""
    images, labels = mnist
    answers, done = [], threading.Event()
    healthy = 'sum(envoy_cluster_membership_healthy{envoy_cluster_name="digits"})'

    def call(client, first):
        for number in itertools.islice(itertools.cycle(range(len(images))), first, None):
            if done.is_set():
                return
            answers.append(client.classify(images[number]).digit == labels[number])

    (victim, _) = stack.containers("server")
    eventually(lambda: stack.query(healthy), lambda count: count == 2)
    with DigitClient(f"127.0.0.1:{stack.ports['GRPC_PORT']}") as client, ThreadPoolExecutor(8) as threads:
        calling = [threads.submit(call, client, 50 * number) for number in range(8)]
        try:
            for action, left in (("kill?signal=KILL", 1), ("start", 2)):
                count = len(answers)
                eventually(lambda: len(answers), lambda now, count=count: now > count + 200)
                engine("POST", f"/containers/{victim['ID']}/{action}")
                eventually(lambda: stack.query(healthy), lambda count, left=left: count == left)
        finally:
            done.set()
    for each in calling:
        each.result()
    record_property("calls", len(answers))
    assert np.mean(answers) > 0.95


def test_server_containers_stop_cleanly(stack):
    """`stop` lets the servers drain: they end by themselves with status 0, long before they would be killed."""
    stack.compose("stop", "server")
    assert [container["ExitCode"] for container in stack.containers("server")] == [0, 0]
