"""Ray Serve for real: a cluster of two nodes, each a network namespace of its own, asked with the SDK."""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest
import yaml
from conftest import ROOT, wait_until
from namespaces import Namespace, network
from packages import image_of, write_package
from traffic import Traffic

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc
from digits_client import DigitClient, DigitsError, InvalidImage, NotFound

log = logging.getLogger(__name__)

pytestmark = pytest.mark.timeout(600)  # a node starts a dozen processes
BIN = Path(sys.executable).parent
START_S = 240
"""A busy machine starts a node's dozen processes slowly; Ray's own patience ends sooner."""


class Node(Namespace):
    """A node of Ray's cluster."""

    FIXED = (
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "dashboard-agent-listen-port",
        "runtime-env-agent-port",
    )

    def __init__(self, bridge, subnet, number, folder, *flags):
        super().__init__(bridge, subnet, number)
        self._log = folder / f"node-{number}.log"
        # Without cluster-wide settings: what the replicas import comes from here.
        path = ":".join(str(ROOT / part) for part in ("proto", "server", "deploy/ray"))
        # Else a token that Ray once wrote to the home folder would be asked of the other nodes.
        own = {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": str(START_S)}
        untraced = {
            name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")
        }  # half the time
        self._environment = untraced | own
        ports = [f"--{name}={52366 + place}" for place, name in enumerate(self.FIXED)]
        command = [BIN / "ray", "start", "--block", "--num-cpus=2", "--object-store-memory=100000000"]
        self._command = [*self.exec, *command, f"--node-ip-address={self.ip}", "--disable-usage-stats", *ports, *flags]

    def start(self):
        """Start Ray and return when the node is part of the cluster."""
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=out, stderr=out)
        wait_until(lambda: self._process.poll() is not None or "runtime started" in self._log.read_text(), START_S)
        assert self._process.poll() is None, self._log.read_text()

    def serve(self, *arguments):
        """Run Ray Serve's command on this node, and return what it printed."""
        address = ("-a", f"http://{self.ip}:8265")
        command = [*self.exec, BIN / "serve", arguments[0], *address, *arguments[1:]]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self):
        super().close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def nodes():
    """Two nodes; the first is the head."""
    with network() as bridge, contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray")))  # short: for names of sockets
        head_ip = f"{bridge[1]}.2"
        head = ("--head", "--port=6379", f"--dashboard-host={head_ip}", f"--temp-dir={folder / 'ray'}")
        nodes = []
        for number, flags in enumerate([head, (f"--address={head_ip}:6379",)]):
            nodes.append(Node(*bridge, number, folder, *flags))
            stack.callback(nodes[-1].close)
            nodes[-1].start()
        yield nodes


@pytest.fixture(scope="module")
def deploy(nodes, tmp_path_factory):
    """Return what deploys the shipped configuration with a folder of model packages."""
    file = tmp_path_factory.mktemp("config") / "serve.yaml"

    def deploy(models):
        config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        config["applications"][0]["args"] = {"models": str(models)}
        file.write_text(yaml.safe_dump(config))
        nodes[0].serve("deploy", str(file))

    return deploy


@pytest.fixture(scope="module")
def client(nodes, deploy, tmp_path_factory):
    """The SDK, connected to both nodes, whose replicas are up."""
    models = tmp_path_factory.mktemp("models-1")
    write_package(models / "toy" / "1")
    deploy(models)

    def answers():
        with contextlib.suppress(DigitsError):
            return client.classify(image_of(3)).digit == 3

    with DigitClient([f"{node.ip}:50051" for node in nodes]) as client:
        wait_until(answers, 150)
        wait_until(lambda: nodes[0].serve("status").count(": HEALTHY") == 3, 150)  # two proxies, and the deployment
        yield client


def test_same_answers(client, server):
    """Unary calls, streams with a bad message, models, health and errors are answered as by `digits-server`."""
    with DigitClient(server.address, model="toy-a", version="1") as ours:
        for ask in (
            lambda it: it.classify_many([image_of(digit) for digit in range(10)]).probabilities.tolist(),
            lambda it: [
                type(answer) if isinstance(answer, InvalidImage) else answer.digit
                for answer in it.stream([image_of(4), b"junk", image_of(5)])
            ],
            lambda it: it.health(),
        ):
            assert ask(client) == ask(ours)
    assert [(model.name, model.version) for model in client.models()] == [("toy", "1")]


def test_errors_are_the_servers(client, nodes):
    """An unknown model is refused with the server's words for people and details for programs."""
    with (
        DigitClient(f"{nodes[0].ip}:50051", model="nope") as lost,
        pytest.raises(NotFound, match="model: 'nope' is not served; there are \\['toy'\\]") as refused,
    ):
        lost.classify(image_of(1))
    assert "grpc-status-details-bin" in {key for key, _ in refused.value.__cause__.trailing_metadata()}


def test_requests_get_their_names_back(client, nodes):
    """Who names a request gets the name, the model and its times in trailing metadata."""
    with grpc.insecure_channel(f"{nodes[0].ip}:50051") as channel:
        request = pb.ClassifyRequest(pixels=image_of(1).tobytes(), request_id="r-1")
        _, call = pb_grpc.DigitClassifierStub(channel).Classify.with_call(request, timeout=20)
    trailers = dict(call.trailing_metadata())
    assert (trailers["x-request-id"], trailers["digits-model"]) == ("r-1", "toy")


def test_version_is_changed_and_a_node_is_lost(client, nodes, deploy, tmp_path):
    """Under load replicas are exchanged for ones of a new version, then a node loses its power: no call fails."""
    write_package(tmp_path / "toy" / "2", shift=1)
    with Traffic(client, bare=0, sdk=6, pause_s=6 / 500) as traffic:
        traffic.more(200)
        deploy(tmp_path)
        wait_until(lambda: traffic.versions["2"])
        wait_until(lambda: "UPDATING" not in nodes[0].serve("status"))
        before = traffic.versions["1"]
        traffic.more(500)
        assert traffic.versions["1"] == before
        changed = dict(traffic.outcomes)
        nodes[1].kill()
        traffic.more(500)
        time.sleep(3)  # calls that hang would be found in time
        traffic.more(100)
    log.info("version changed: %s, then a node killed: %s", changed, dict(traffic.outcomes))
    assert traffic.faults == []
    assert traffic.outcomes["right"] == traffic.sent
