"""Odd surroundings: standard files closed or full, no home, no name, no temporary folder. The server serves on."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import wait_until
from packages import write_package


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(params=[1, 2])
def serves(request, toy_models, tmp_path):
    """Start a server in a shell with some redirections, see that it is ready, end it, and return what it logged."""

    def serves(redirections, *prefix, models=toy_models, environment=None):
        port = free_port()
        flags = [f"--models={models}", "--default-model=toy-a", f"--workers={request.param}", "--port=0"]
        command = [*prefix, sys.executable, "-m", "digits_server", *flags, f"--metrics-port={port}"]
        with (tmp_path / "log").open("w") as log:
            server = subprocess.Popen(
                ["bash", "-c", f'exec "$@" {redirections}', "bash", *command], stderr=log, env=environment
            )

        def is_ready():
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as response:
                    return response.status == 200
            except OSError as error:  # not yet, in one way or another
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                return False

        try:
            wait_until(is_ready)
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
            server.wait()
        return (tmp_path / "log").read_text()

    return serves


@pytest.mark.parametrize("redirections", ["<&- >&-", "<&- >&- 2>&-", ">/dev/full", "> >(true)", "2>/dev/full"])
def test_standard_files_need_not_be_there(serves, redirections):
    """Closed, full or without a reader, they stop neither one process nor several, and the end is an orderly one."""
    serves(redirections)


def test_full_output_is_logged(serves):
    """The line that can't be printed is in the log, with the reason."""
    log = serves(">/dev/full")
    assert "No space left on device" in log
    assert "digits-server ready" in log


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody in particular")
def test_user_needs_neither_name_nor_home_nor_temporary_folder(serves):
    """A user id that has no name serves, with a home that can't be written and TMPDIR that is not there."""
    become = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    if subprocess.run([*become, sys.executable, "-c", again], capture_output=True, check=False).returncode:
        pytest.skip("other users can't start this Python")
    environment = os.environ | {"HOME": "/proc", "TMPDIR": "/nowhere"}
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is for this user's eyes
        Path(folder).chmod(0o755)
        write_package(Path(folder) / "toy-a" / "1")
        serves("", *become, models=folder, environment=environment)
