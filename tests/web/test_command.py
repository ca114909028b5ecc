"""The command `digits-web`, as its user meets it."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from conftest import wait_until
from gateways import start_gateway

from digits_web.__main__ import listen, main


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
        (["--host=203.0.113.1"], {}, "can't listen there: Cannot assign requested address"),
        (["--host=no.such.host.invalid"], {}, "can't listen there: "),
        (["--host="], {}, "can't listen there: "),
        ([], {"DIGITS_WEB_TIMEOUT_S": "0"}, "DIGITS_WEB_TIMEOUT_S"),
        ([], {"DIGITS_WEB_SEVER": "x"}, "DIGITS_WEB_SEVER is not a setting; did you mean DIGITS_WEB_SERVER?"),
    ],
)
def test_bad_settings_are_named(arguments, variables, words):
    """A setting that can't work ends the command with status 2 and the reason."""
    result = CliRunner().invoke(main, arguments, env=variables)
    assert result.exit_code == 2
    assert words in result.output


def test_a_taken_port_is_told_with_the_systems_reason(gateway):
    """Where another process listens, the operating system's own reason is given."""
    result = CliRunner().invoke(main, [f"--port={httpx.URL(gateway.url).port}"])
    assert result.exit_code == 2
    assert "can't listen there: Address already in use" in result.output


@pytest.mark.parametrize(
    ("host", "urls"),
    [
        ("::1", ["[::1]"]),
        ("[::1]", ["[::1]"]),
        ("0:0:0:0:0:0:0:1", ["[::1]"]),
        ("::", ["[::1]", "127.0.0.1"]),
        ("[::]", ["[::1]", "127.0.0.1"]),
        ("localhost", ["localhost"]),
        ("0.0.0.0", ["127.0.0.1"]),
    ],
)
def test_every_spelling_of_a_host_is_taken(host, urls):
    """IPv6 addresses work with and without brackets, `::` takes IPv4 too, and the ready line's address is a URL."""
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        for url in urls:
            with socket.create_connection((url.strip("[]"), port), timeout=20):
                pass


def test_ready_line_has_an_ipv6_url():
    """On an IPv6 address the ready line gives a URL that can be opened."""
    gateway = start_gateway("--host=::1")
    assert gateway.url.startswith("http://[::1]:")
    assert httpx.get(f"{gateway.url}/healthz", timeout=30).text == "ok\n"
    assert gateway.stop() == 0


def test_kubernetes_service_links_are_no_settings(monkeypatch):
    """The variables that Kubernetes sets for a service of this name neither set anything nor end the start."""
    for name, value in {
        "DIGITS_WEB_PORT": "tcp://10.0.0.1:8080",
        "DIGITS_WEB_SERVICE_HOST": "10.0.0.1",
        "DIGITS_WEB_SERVICE_PORT_HTTP": "8080",
        "DIGITS_WEB_PORT_8080_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    gateway = start_gateway()
    assert httpx.get(f"{gateway.url}/healthz", timeout=30).text == "ok\n"
    assert gateway.stop() == 0


def test_serves_without_anybody_to_read_its_output():
    """Where standard output can't be written to, the gateway serves all the same."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen([sys.executable, "-m", "digits_web", f"--port={port}"], stdout=full)
    wait_until(lambda: is_alive(port))
    process.terminate()
    assert process.wait(30) == 0


def test_serves_with_closed_standard_streams():
    """Started without standard input, output and error, the gateway serves, and its exit status is 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "digits_web", f"--port={port}"]
    )
    wait_until(lambda: is_alive(port))
    assert httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=30).status_code == 503
    process.terminate()
    assert process.wait(30) == 0


def is_alive(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
    except httpx.TransportError:
        return False


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
