"""A process that becomes Envoy: its configuration and its folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import start_server

from digits_server.config import Config
from digits_server.rpc import envoy_start, fronts

pytestmark = pytest.mark.skipif(
    fronts.obstacle_to_envoy(Config()) is not None, reason=f"envoy {fronts.obstacle_to_envoy(Config())}"
)


def listener(config, folder):
    (found,) = envoy_start.configuration(config, folder)["static_resources"]["listeners"]
    return found


def test_plain_text_has_no_tls(tmp_path):
    """Without a certificate Envoy listens in plain text, on the address and port of the settings."""
    found = listener(Config(host="::", port=5), tmp_path)
    assert found["address"]["socket_address"] == {"address": "::", "port_value": 5, "ipv4_compat": True}
    assert "transport_socket" not in found["filter_chains"][0]


@pytest.mark.parametrize("asks_who_calls", [False, True])
def test_tls_asks_for_certificates_only_where_told(tmp_path, asks_who_calls):
    """Clients' certificates are wanted with --tls-client-ca, and not without."""
    authority = Path("ca.pem") if asks_who_calls else None
    config = Config(tls_cert=Path("tls.pem"), tls_key=Path("tls.key"), tls_client_ca=authority)
    socket = listener(config, tmp_path)["filter_chains"][0]["transport_socket"]["typed_config"]
    assert socket["require_client_certificate"] is asks_who_calls
    assert ("validation_context_sds_secret_config" in socket["common_tls_context"]) is asks_who_calls


def test_configuration_is_one_that_envoy_takes(tmp_path):
    """Envoy itself finds no fault with any part of it that is not Python's."""
    config = Config(host="127.0.0.1", port=0, tls_cert=Path("tls.pem"), tls_key=Path("tls.key"))
    for name in ("server", "clients"):
        (tmp_path / f"{name}.yaml").write_text("resources: []")
    found = envoy_start.configuration(config, tmp_path)
    manager = found["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][1] = {
        "name": "router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }
    (tmp_path / "envoy.yaml").write_text(envoy_start.json.dumps(found))
    envoy = Path(sys.executable).with_name("envoy")
    checked = subprocess.run(
        [envoy, "--mode", "validate", "-c", tmp_path / "envoy.yaml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_no_thread_interrupts_another(toy_models, tmp_path):
    """All threads of a worker are batch jobs: those of Envoy and of Python wake each other at each call."""
    server = start_server(toy_models, tmp_path, "--default-model=toy-b", "--transport=envoy")
    threads = [int(thread.name) for thread in Path(f"/proc/{server.serving}/task").iterdir()]
    policies = {os.sched_getscheduler(thread) for thread in threads}
    assert len(threads) > 2
    assert policies == {os.SCHED_BATCH}
    assert server.stop() == 0


def test_folders_of_the_dead_are_cleared_away(tmp_path):
    """What a killed process left is removed when the next one starts; what is somebody's stays."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f"digits-envoy-{pid}-x").mkdir()
    own = envoy_start._own_folder(tmp_path)
    assert set(tmp_path.iterdir()) == {own, tmp_path / f"digits-envoy-{os.getpid()}-x"}
    assert own.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(own)
