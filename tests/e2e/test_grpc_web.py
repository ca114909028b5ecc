"""gRPC-Web: what a browser calls without a gateway. Envoy translates it."""

import http.client

import pytest
from conftest import start_server
from packages import image_of
from playwright.sync_api import sync_playwright

from digits.v1 import classifier_pb2 as pb
from digits_server.config import Config
from digits_server.rpc import fronts
from digits_server.rpc.frames import frame

METHOD = "/digits.v1.DigitClassifier/Classify"
TYPE = "application/grpc-web+proto"
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def server(toy_models, tmp_path_factory):
    if reason := fronts.obstacle_to_envoy(Config()):
        pytest.skip(f"envoy {reason}")
    flags = ["--default-model=toy-b", "--transport=envoy"]
    server = start_server(toy_models, tmp_path_factory.mktemp("web"), *flags)
    yield server
    assert server.stop() == 0


def ask(server, message):
    """Return the messages of an answer to a call over HTTP/1.1, by their flags: 0 is data, 128 holds the trailers."""
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.request("POST", METHOD, frame(message), {"content-type": TYPE, "x-grpc-web": "1"})
    response = connection.getresponse()
    body, found = response.read(), {}
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        found[body[0]], body = body[5:end], body[end:]
    connection.close()
    return found, response


def test_call_over_http_1(server):
    """A call gets its message, and the status in a message of trailers."""
    found, _ = ask(server, pb.ClassifyRequest(pixels=image_of(3).tobytes()).SerializeToString())
    assert list(pb.ClassifyResponse.FromString(found[0]).digits) == [3]
    assert b"grpc-status:0" in found[128]


def test_refusal_over_http_1(server):
    """A refused call gets its status and what is wrong."""
    found, response = ask(server, b"\xff")
    told = found.get(128, b"").decode() + str(response.getheaders())
    assert "'grpc-status', '3'" in told or "grpc-status:3" in told
    assert "not a message of the expected type" in told.replace("%20", " ")


def test_browser_calls_classify(server):
    """Chromium's own fetch, on a page of the same origin, classifies an image."""
    try:
        driver = sync_playwright().start()
    except Exception as error:  # noqa: BLE001 - whatever keeps a browser from starting
        pytest.skip(f"no browser: {error}")
    try:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
    except Exception:  # noqa: BLE001 - as above
        driver.stop()
        pytest.skip(f"no {CHROMIUM}")
    request = frame(pb.ClassifyRequest(pixels=image_of(3).tobytes()).SerializeToString())
    page = browser.new_page()
    page.route(f"http://{server.address}/", lambda route: route.fulfill(content_type="text/html", body="a page"))
    page.goto(f"http://{server.address}/")
    answer = page.evaluate(
        """async ([path, type, bytes]) => {
            const answer = await fetch(path, {
                method: "POST", body: new Uint8Array(bytes), headers: {"content-type": type, "x-grpc-web": "1"}
            })
            return [...new Uint8Array(await answer.arrayBuffer())]
        }""",
        [METHOD, TYPE, list(request)],
    )
    browser.close()
    driver.stop()
    size = int.from_bytes(bytes(answer[1:5]), "big")
    assert list(pb.ClassifyResponse.FromString(bytes(answer[5 : 5 + size])).digits) == [3]
