"""The command line of the server, as its user meets it."""

import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from digits_server.__main__ import main
from digits_server.config import Config


def run(*flags, **environment):
    return CliRunner().invoke(main, flags, env=environment, terminal_width=120)


def test_help_shows_every_setting_with_its_variable():
    """Each field of the configuration can be set by flag and by environment variable, and --help says so."""
    text = run("--help").output
    for field in Config.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text
        assert f"DIGITS_SERVER_{field.upper()}" in text


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--port", "70000"], "'--port' (env var: 'DIGITS_SERVER_PORT'): 70000 is not in the range 0<=x<=65535"),
        (["--models", "nowhere"], "'--models' (env var: 'DIGITS_SERVER_MODELS'): Directory 'nowhere' does not exist"),
        (["--inference-threads", "4096"], "4096 is not in the range 1<=x<="),
        (["--workers", "x"], "'x'; allowed are auto and 1 to 256"),
        (["--log-level", "loud"], "'loud' is not one of 'debug', 'info', 'warning', 'error'"),
    ],
)
def test_bad_setting_is_named(flags, complaint):
    """Exit status 2, and a line that names the setting, the value and what is allowed."""
    result = run(*flags)
    assert result.exit_code == 2
    assert complaint in result.output


def test_bad_variable_is_named():
    """A wrong value from the environment is reported with the variable's name."""
    result = run(DIGITS_SERVER_MAX_QUEUE="many")
    assert result.exit_code == 2
    assert "DIGITS_SERVER_MAX_QUEUE" in result.output
    assert "'many' is not a valid integer range" in result.output


def test_unknown_variable_is_refused():
    """A misspelt variable is an error with a suggestion, not silently without effect."""
    result = run(DIGITS_SERVER_PROT="1")
    assert result.exit_code == 2
    assert "DIGITS_SERVER_PROT is not a setting; did you mean DIGITS_SERVER_PORT?" in result.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DIGITS_SERVER_PORT", "tcp://10.0.0.7:50051"),
        ("DIGITS_SERVER_SERVICE_HOST", "10.0.0.7"),
        ("DIGITS_SERVER_SERVICE_PORT", "50051"),
        ("DIGITS_SERVER_SERVICE_PORT_GRPC", "50051"),
        ("DIGITS_SERVER_PORT_50051_TCP", "tcp://10.0.0.7:50051"),
        ("DIGITS_SERVER_PORT_50051_TCP_PROTO", "tcp"),
        ("DIGITS_SERVER_PORT_50051_TCP_PORT", "50051"),
        ("DIGITS_SERVER_PORT_50051_TCP_ADDR", "10.0.0.7"),
        ("DIGITS_SERVER_METRICS_PORT", "tcp://10.0.0.8:9464"),
        ("DIGITS_SERVER_METRICS_SERVICE_HOST", "10.0.0.8"),
    ],
)
def test_service_links_of_kubernetes_are_no_settings(name, value):
    """What Kubernetes sets for Services named like ours neither ends the start nor changes a setting."""
    result = run("--models=nowhere", **{name: value})
    assert result.exit_code == 2
    assert "Directory 'nowhere' does not exist" in result.output
    assert name not in result.output.replace("DIGITS_SERVER_MODELS", "")


def digits_server(*flags):
    command = [sys.executable, "-m", "digits_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_empty_repository_is_an_error(tmp_path):
    """Without a model to serve the server does not start: exit status 2, the folder named."""
    result = digits_server("--models", str(tmp_path), "--port=0", "--metrics-port=0")
    assert result.returncode == 2
    assert f"--models: {tmp_path} holds no model" in result.stderr


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_busy_port_is_an_error(toy_models, flag):
    """A port that is taken ends the start with status 2; the flag and the address are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = {"--port": "--metrics-port", "--metrics-port": "--port"}[flag]
        result = digits_server("--models", str(toy_models), "--default-model=toy-a", f"{flag}={port}", f"{other}=0")
    assert result.returncode == 2
    assert f"{flag}: can't listen on 127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--transport=envoy", "--channelz"], "--transport: envoy has no channelz; grpcio can do it"),
        (["--tls-cert={file}"], "--tls-cert: {file} is of use only with both --tls-cert and --tls-key"),
        (["--tls-client-ca={file}"], "--tls-client-ca: {file} is of use only with both --tls-cert and --tls-key"),
        (["--tls-cert={file}", "--tls-key={file}"], "--tls-cert: {file} and {file}: [SSL] PEM lib"),
        (["--token-file={file}"], "--token-file: names no token"),
        (["--token-file={file}", "--host=0.0.0.0"], "--token-file: tokens would travel in plain text to 0.0.0.0; give"),
        (["--token-file={file}", "--host=0.0.0.0", "--allow-plain-tokens"], "--token-file: names no token"),
    ],
)
def test_settings_of_security_that_cannot_work_are_refused(toy_models, tmp_path, flags, complaint):
    """What would not protect as it says ends the start with status 2, and a line that says why."""
    (tmp_path / "empty").touch()
    flags = [flag.format(file=tmp_path / "empty") for flag in flags]
    result = digits_server("--models", str(toy_models), "--default-model=toy-a", "--port=0", "--metrics-port=0", *flags)
    assert result.returncode == 2
    assert complaint.format(file=tmp_path / "empty") in " ".join(result.stderr.split())
