"""The dashboards: each query is asked of a real Prometheus that scrapes a real server under load, and finds data."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from conftest import ROOT, start_server

from digits.v1 import classifier_pb2 as pb
from digits_client import DigitClient

DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
INTERVAL = "20s"


def queries(board):
    """Yield title and expression of each query of a dashboard's panels."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


class Prometheus:
    """A real one, on a port of its own."""

    def __init__(self, folder: Path, target: str):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus/rules/*.yml")]
        config["scrape_configs"] = [{"job_name": "digits-server", "static_configs": [{"targets": [target]}]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
                "--log.level=error",
            ]
        )

    def get(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]

    def ask(self, expression):
        """Return the numbers that an expression has now; NaN is none."""
        results = self.get("query", query=expression)["result"]
        return [value for result in results if (value := float(result["value"][1])) == value]


def load(server, stop):
    """Send what fills every panel: good and bad calls, streams, too much at once, digits and what is none."""
    rng = np.random.default_rng(0)
    with DigitClient(server.address, model="digits-mlp") as client, grpc.insecure_channel(server.address) as channel:
        classify = channel.unary_unary("/digits.v1.DigitClassifier/Classify")
        for _ in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            client.classify_many(rng.integers(0, 256, (512, 784), np.uint8))
            list(client.stream(rng.integers(0, 256, (8, 784), np.uint8)))
            with pytest.raises(grpc.RpcError):
                classify(pb.ClassifyRequest(pixels=b"x").SerializeToString(), timeout=20)
            large = pb.ClassifyRequest(pixels=bytes(784 * 4000)).SerializeToString()
            calls = [classify.future(large, timeout=20) for _ in range(4)]
            {call.code() for call in calls}  # more than there is room for, at times


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Prometheus in front of a server under load that has lost a worker."""
    if not shutil.which("prometheus"):
        pytest.skip("no prometheus (Debian: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    server = start_server(ROOT / "models", folder, "--workers=2")
    pid = server.process.pid
    os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]), signal.SIGKILL)
    prometheus = Prometheus(folder, server.metrics_url.removeprefix("http://"))
    stop = threading.Event()
    loader = threading.Thread(target=load, args=(server, stop))
    loader.start()
    yield prometheus
    stop.set()
    loader.join()
    prometheus.process.terminate()
    assert prometheus.process.wait(30) == 0
    assert server.stop() == 0


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
@pytest.mark.timeout(240)
def test_every_query_returns_data(prometheus, path):
    """With its variables filled in as Grafana does, each query of each panel has numbers."""
    board = json.loads(path.read_text())
    values = {"__rate_interval": INTERVAL}
    missing, end = {"anything"}, time.monotonic() + 120
    while missing and time.monotonic() < end:
        try:
            for variable in board["templating"]["list"]:
                metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
                found = prometheus.get(f"label/{label}/values", **{"match[]": metric})
                values[variable["name"]] = (
                    "(" + "|".join(re.escape(value).replace("\\", "\\\\") for value in found) + ")"
                )
            asked = [
                (title, re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[0]), query))
                for title, query in queries(board)
            ]
            missing = {(title, query) for title, query in asked if not prometheus.ask(query)}
        except urllib.error.URLError:  # it is still starting
            pass
        time.sleep(0.5)
    assert not missing
    for annotation in board["annotations"]["list"]:
        prometheus.ask(annotation["expr"])  # no alert need be firing


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_their_places(path):
    """Panels don't overlap, bear ids of their own, say what they show, and ask the data source that is provisioned."""
    board = json.loads(path.read_text())
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
