"""The command `digits-web`, as its user meets it."""

import socket
import subprocess
import sys

import httpx
import pytest
from click.testing import CliRunner
from gateways import start_gateway

from digits_web.__main__ import main


def test_help_names_each_setting_and_its_variable():
    """--help lists every setting with its default and its environment variable."""
    text = CliRunner().invoke(main, ["--help"]).output
    for param in main.params:
        if param.name != "version":
            assert param.opts[0] in text
            assert f"DIGITS_WEB_{param.name.upper()}" in text
    assert "127.0.0.1:50051" in text


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--port=65536"], {}, "65536 is not in the range 0<=x<=65535"),
        (["--metrics-url=file:///etc/passwd"], {}, "allowed are http://... and https://..."),
        (["--host=203.0.113.1"], {}, "--host 203.0.113.1 --port 8080: can't listen there"),
        ([], {"DIGITS_WEB_TIMEOUT_S": "0"}, "DIGITS_WEB_TIMEOUT_S"),
        ([], {"DIGITS_WEB_SEVER": "x"}, "DIGITS_WEB_SEVER is not a setting; did you mean DIGITS_WEB_SERVER?"),
    ],
)
def test_bad_settings_are_named(arguments, variables, words):
    """A setting that can't work ends the command with status 2 and the reason."""
    result = CliRunner().invoke(main, arguments, env=variables)
    assert result.exit_code == 2
    assert words in result.output


def test_servers_that_ask_who_calls(guarded):
    """With authority, certificate, key and token the gateway is let in; half of a pair is refused at the start."""
    address, flags, pair = guarded
    gateway = start_gateway(f"--server={address}", *flags, *pair, "--timeout-s=20")
    body = {"content": bytes(784), "headers": {"content-type": "application/octet-stream"}}
    assert httpx.post(f"{gateway.url}/api/classify", **body, timeout=30).json()["model"] == "toy-b"
    assert gateway.stop() == 0
    result = CliRunner().invoke(main, [pair[0]])
    assert result.exit_code == 2
    assert "certificate and key both or neither" in result.output


def test_ready_line_says_where(gateway, shipped):
    """One line names the page's address, the server and the process."""
    assert gateway.ready == (f"digits-web ready: {gateway.url}, server {shipped.address}, pid {gateway.process.pid}\n")


def test_sigterm_finishes_requests(shipped):
    """A request that is under way when SIGTERM comes is answered, new ones are refused, and the exit status is 0."""
    gateway = start_gateway(f"--server={shipped.address}")
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port)) as connection, connection.makefile("rb") as answer:
        connection.sendall(
            b"POST /api/classify HTTP/1.1\r\nHost: web\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 784\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b" 100 " in answer.readline()  # the gateway waits for the body
        gateway.process.terminate()
        while True:
            try:
                httpx.get(f"{gateway.url}/healthz")
            except httpx.TransportError:
                break
        connection.sendall(bytes(784))
        assert answer.readline() == b"\r\n"
        assert b" 200 " in answer.readline()
    assert gateway.process.wait(30) == 0


def test_gateway_is_a_light_user_of_the_client():
    """The gateway loads no server, no onnxruntime and no TensorFlow."""
    code = "import sys, digits_web.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "digits_client" in modules
    assert not {"digits_server", "digits_export", "onnxruntime", "tensorflow", "playwright"} & set(modules)
