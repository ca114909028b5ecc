"""A real Envoy, with the configuration that is shipped, in front of hosts whose addresses it is given."""

import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import yaml
from conftest import ROOT, wait_until


class Envoy:
    """Runs as long as the `with` block lasts, which begins when it knows the hosts to be healthy.

    Args:
        addresses: Of the hosts.
        folder: For its configuration and log.
        policy: Instead of the configuration's balancing.
    """

    def __init__(self, addresses, folder, policy=None):
        self._hosts = [address.split(":") for address in addresses]
        self._folder, self._policy = folder, policy
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            self._port, self._admin_port = one.getsockname()[1], other.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    def _config(self):
        config = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
        config["admin"]["address"]["socket_address"] |= {"port_value": self._admin_port}
        listeners, clusters = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
        del listeners[1], clusters[1]  # the pages for probes and Prometheus
        listeners[0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": self._port}
        (endpoints,) = clusters[0]["load_assignment"]["endpoints"]
        (endpoint,) = endpoints["lb_endpoints"]
        named = {"address": "digits-server-hosts", "port_value": 50051}
        assert endpoint == {"endpoint": {"address": {"socket_address": named}}}
        endpoints["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": int(port)}}}}
            for ip, port in self._hosts
        ]
        del clusters[0]["cluster_type"]
        clusters[0] |= {"type": "STATIC", "lb_policy": self._policy or clusters[0]["lb_policy"]}
        return config

    def __enter__(self):
        (self._folder / "envoy.json").write_text(json.dumps(self._config()))
        envoy = Path(sys.executable).with_name("envoy")  # of the same environment, whatever the PATH
        command = [envoy, "-c", self._folder / "envoy.json", "--concurrency", "1", "--use-dynamic-base-id"]
        with (self._folder / "envoy.log").open("w") as log:
            self._process = subprocess.Popen(command, stderr=log)
        wait_until(lambda: self._process.poll() or self.stat("membership_healthy") == len(self._hosts))
        assert self._process.poll() is None, (self._folder / "envoy.log").read_text()
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)

    def stat(self, name):
        """Return one figure about the hosts."""
        url = f"http://127.0.0.1:{self._admin_port}/stats?filter=^cluster.digits.{name}$"
        try:
            with urllib.request.urlopen(url, timeout=10) as page:
                return int(page.read().split()[-1])
        except (OSError, IndexError):
            return 0
