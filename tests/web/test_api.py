"""The JSON API, asked over HTTP of a real gateway in front of a real server."""

import asyncio
import gzip
import io
import json
import socket
import tomllib
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from conftest import ROOT
from gateways import conforms, start_gateway
from openapi_spec_validator import validate
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from digits_client import DigitClient, Prediction, Quality, Timing
from digits_web.app import HEADERS, Config, create_app
from digits_web.models import Models

SAMPLES = ROOT / "docs/samples"


@pytest.fixture(scope="module")
def http(gateway):
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def seven():
    """MNIST's first test image, (784,) uint8; it shows a 7."""
    path = ROOT / "tests/data/mnist/t10k-images-idx3-ubyte.gz"
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, count=784, offset=16)


def problem(response, status):
    """Assert that an answer tells of a problem as described; return the sentence."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    body = conforms(response.json(), "Problem")
    assert body["status"] == status
    return body["detail"]


def png(size, mode="L", color=255, text=""):
    file, info = io.BytesIO(), PngInfo()
    if text:
        info.add_text("comment", text, zip=True)
    Image.new(mode, size, color).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def turned(size):
    """Return a JPEG whose EXIF says that its top is on the right, and who made it."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    Image.new("L", size, 255).save(file, "JPEG", exif=exif)
    return file.getvalue()


def classify(http, content, kind):
    return http.post("/api/classify", content=content, headers={"content-type": kind})


def test_description_is_valid_and_complete(http):
    """The API describes itself by valid OpenAPI, of this version, with each of its paths and no other."""
    described = http.get("/api/openapi.json").json()
    validate(described)
    assert (
        described["info"]["version"] == tomllib.loads((ROOT / "web/pyproject.toml").read_text())["project"]["version"]
    )
    (api,) = (route for route in create_app(Config()).routes if route.path == "/api")
    assert set(described["paths"]) == {f"/api{route.path}" for route in api.routes} - {"/api/openapi.json"}


def test_all_kinds_of_body_give_the_same_answer(http, gateway, shipped, seven):
    """JSON pixels, JSON vectors, flat or in rows, and raw bytes of one image are answered as the SDK answers it."""
    with DigitClient(shipped.address) as client:
        expected = client.classify(seven)
    for content, kind in [
        (seven.tobytes(), "application/octet-stream"),
        (json.dumps({"pixels": seven.tolist()}), "application/json"),
        (json.dumps({"pixels": seven.reshape(28, 28).tolist()}), "application/json; charset=utf-8"),
        (json.dumps({"vector": (seven / 255).tolist()}), "application/json"),
        (json.dumps({"vector": (seven / 255).reshape(28, 28).tolist()}), "application/json"),
    ]:
        answer = conforms(classify(http, content, kind).raise_for_status().json(), "Prediction")
        assert (answer["digit"], answer["abstains"], answer["quality"]) == (7, False, [])
        assert answer["top"][0] == {"digit": 7, "label": "7", "probability": answer["confidence"]}
        assert (answer["label"], len(answer["top"])) == ("7", 10)
        np.testing.assert_allclose(answer["probabilities"], expected.probabilities, atol=2e-6)  # 6 digits are given
        assert answer["pixels"] == seven.tolist()


@pytest.mark.parametrize("width", [300, 3000])
def test_photograph_is_recognised_at_any_size(http, width):
    """A JPEG of a digit on paper is prepared as MNIST was, also when it is so large that it is scaled down first."""
    file = io.BytesIO()
    Image.open(SAMPLES / "photo-of-4.jpg").resize((width, width * 3 // 4)).save(file, "JPEG")
    answer = classify(http, file.getvalue(), "image/jpeg").raise_for_status().json()
    assert answer["digit"] == 4
    ink = np.array(answer["pixels"]).reshape(28, 28)
    assert ink.max() > 200
    assert not ink[:3].any()


def test_blank_picture_abstains(http):
    """White paper is answered, as blank and with abstention."""
    answer = classify(http, png((200, 200)), "image/png").raise_for_status().json()
    assert answer["abstains"]
    assert "BLANK" in answer["quality"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"\0" * 783, "application/octet-stream", 400, "783 bytes; allowed are 784"),
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"[1, 2]", "application/json", 400, 'body: [1, 2]; allowed is an object with either "pixels" or "vector"'),
        (b'{"pixels": [], "vector": []}', "application/json", 400, "body: {'pixels': [], 'vector': []}; allowed is"),
        (b'{"pixels": [1, 2]}', "application/json", 400, "pixels: [1, 2]; allowed are 784 numbers, or 28 rows of 28"),
        (b'{"pixels": [[1], [2, 3]]}', "application/json", 400, "pixels: [[1], [2, 3]]; allowed are 784 numbers"),
        (json.dumps({"pixels": ["1"] * 784}).encode(), "application/json", 400, "pixels: ['1', '1',"),
        (
            json.dumps({"pixels": [256] * 784}).encode(),
            "application/json",
            400,
            "pixels: 256; allowed are whole",
        ),
        (json.dumps({"pixels": [-1] * 784}).encode(), "application/json", 400, "pixels: -1; allowed are whole numbers"),
        (json.dumps({"pixels": [0.5] * 784}).encode(), "application/json", 400, "pixels: 0.5; allowed are whole"),
        (
            json.dumps({"vector": [float("nan")] * 784}).encode(),
            "application/json",
            400,
            "vector: floats from nan to nan; allowed is 0 to 1",
        ),
        (b"no picture", "image/png", 400, "no PNG or JPEG"),
        (png((100, 100))[:60], "image/png", 400, "can't be decoded"),
        (turned((9, 9)).replace(b"\1\x0f\0\2", b"\1\0\0\2"), "image/jpeg", 400, "can't be decoded"),  # text for a width
        (png((50, 50), text="x" * 3_000_000), "image/png", 400, "no PNG or JPEG"),  # 3 KB that unpack to 3 MB
        (b"GIF89a", "image/gif", 415, "image/gif; allowed are application/json"),
        (b"", "", 415, "none; allowed are"),
        (png((5001, 5000), "1", 1), "image/png", 413, "5001 x 5000; allowed are 25,000,000 pixels"),
        (png((14_000, 14_000), "1", 1), "image/png", 413, "allowed are 25,000,000 pixels"),
        (b"\0" * (10 * 1024 * 1024 + 1), "application/octet-stream", 413, "at most 10485760 bytes"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_wrong_input_is_refused_in_words(http, content, kind, status, words):
    """What can't be an image is answered with the right status, naming what is wrong and what is allowed."""
    assert words in problem(classify(http, content, kind), status)


def test_body_without_a_length_is_limited_too(http):
    """A body that does not say how long it is is cut off at the limit."""

    def endless():
        for _ in range(200):
            yield b"\0" * 65536

    assert "at most 10485760 bytes" in problem(classify(http, endless(), "application/octet-stream"), 413)


def test_unknown_path_and_method(http):
    """What the API does not have is refused in words."""
    assert "/api/openapi.json" in problem(http.get("/api/nothing"), 404)
    assert "GET /api/classify" in problem(http.get("/api/classify"), 405)


def test_models_and_health(http, shipped):
    """The models and the health are the server's."""
    models = conforms(http.get("/api/models").raise_for_status().json(), "Models")["models"]
    assert [(model["name"], model["is_serving"]) for model in models if model["is_default"]] == [("digits-mlp", True)]
    health = conforms(http.get("/api/health").raise_for_status().json(), "Health")
    assert health == {"ready": True, "server": shipped.address}


def test_answers_carry_the_security_headers(http):
    """Page, files, API and errors alike; the page keeps nothing inline that the policy would forbid."""
    for path in ("/", "/page.js", "/samples/0.png", "/api/models", "/api/nothing", "/nothing"):
        headers = http.get(path).headers
        assert HEADERS.items() <= headers.items()
        assert headers["cache-control"] == ("no-store" if path.startswith("/api/") else "no-cache")
        assert "server" not in headers
    page = http.get("/").text
    assert "<style" not in page
    assert ' style="' not in page
    assert page.count("<script") == page.count('<script type="module" src=')


def test_no_path_leads_out_of_the_page(http):
    """Files beside the page are not served."""
    for path in ("/../openapi.json", "/..%2fopenapi.json", "/%2e%2e/app.py", "/samples/../../app.py"):
        assert http.get(path).status_code == 404


def test_a_model_is_chosen_by_its_name(http, seven):
    """`model` chooses who answers, without it the server's default does; a name that nobody has is refused in words."""
    for query, model in (("", "digits-mlp"), ("?model=digits-cnn", "digits-cnn"), ("?model=digits-mlp", "digits-mlp")):
        answer = http.post(
            f"/api/classify{query}", content=seven.tobytes(), headers={"content-type": "application/octet-stream"}
        )
        assert answer.raise_for_status().json()["model"] == model
    refused = http.post(
        "/api/classify?model=mine", content=bytes(784), headers={"content-type": "application/octet-stream"}
    )
    assert "model: 'mine'; allowed are digits-cnn, digits-mlp" in problem(refused, 404)


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


def letter(index):
    """Return what a model of letters says."""
    probabilities = np.full(26, 0.01, np.float32)
    probabilities[index] = 0.75
    timing = Timing(0.0, 0.001, 1)
    return Prediction(index, 0.75, probabilities, Quality(0), "letters", "1", timing, classes=LETTERS)


class Client:
    """A client without a server, whose answers are given."""

    def __init__(self, **answers):
        self._answers, self.asked = answers, []

    def __getattr__(self, name):
        async def ask(*arguments, **_):
            self.asked.append((name, arguments))
            answer = self._answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask

    async def close(self):
        pass


@pytest.fixture
def ask(monkeypatch):
    """Return what sends a request to a gateway whose client is given."""

    async def ask(client, method, path, **body):
        monkeypatch.setattr("digits_web.app.AsyncDigitClient", lambda _server, **_: client)
        app = create_app(Config(server="far:50051"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://web") as http,
        ):
            return await http.request(method, path, **body)

    return ask


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        (False, 503, "The server at far:50051 is not ready."),
        (ZeroDivisionError("secret"), 500, "The gateway failed; its log tells more."),
    ],
)
async def test_unready_server_and_own_faults_are_told_apart(ask, outcome, status, words):
    """A server that is up and not ready is 503; a fault of the gateway's own is 500 and keeps its details to itself."""
    answer = await ask(Client(health=outcome), "GET", "/api/health")
    assert problem(answer, status) == words
    assert answer.headers.items() >= {**HEADERS, "cache-control": "no-store"}.items()


async def test_first_requests_for_a_model_share_a_client():
    """Two that ask for a model at once, before it has a client, get one and the same, which is closed at the end."""

    class Listing(Client):
        async def models(self):
            await asyncio.sleep(0)
            return [SimpleNamespace(name="mine")]

    models = Models(lambda _: Listing())
    one, other = await asyncio.gather(models.client("mine"), models.client("mine"))
    assert one is other


async def test_answers_bear_the_models_own_labels(ask):
    """A model of 26 letters answers with a letter, a probability for each, and the ten likeliest by name."""
    body = {"content": bytes(784), "headers": {"content-type": "application/octet-stream"}}
    response = await ask(Client(classify=letter(16)), "POST", "/api/classify", **body)
    answer = conforms(response.raise_for_status().json(), "Prediction")
    assert (answer["digit"], answer["label"], len(answer["probabilities"])) == (16, "q", 26)
    assert answer["top"][0] == {"digit": 16, "label": "q", "probability": 0.75}
    assert len(answer["top"]) == 10


@pytest.mark.parametrize("width", [1000, 3000])
async def test_a_number_is_read_digit_by_digit(ask, width):
    """Each digit of a number has a box in the picture's own pixels, however large that is, and an answer of its own."""
    digits = [
        SimpleNamespace(
            box=(10, 20, 30, 40), prediction=letter(index), is_touching=index == 1, image=np.full((28, 28), 9, np.uint8)
        )
        for index in (1, 0)
    ]
    client = Client(read=SimpleNamespace(text="ba", digits=tuple(digits)))
    body = {"content": png((width, 400)), "headers": {"content-type": "image/png"}}
    number = conforms((await ask(client, "POST", "/api/read", **body)).raise_for_status().json(), "Number")
    assert (number["text"], number["width"], number["height"]) == ("ba", width, pytest.approx(400, abs=2))
    scale = width / min(width, 1024)
    assert [digit["box"] for digit in number["digits"]] == [[round(edge * scale) for edge in (10, 20, 30, 40)]] * 2
    assert [(digit["label"], digit["is_touching"]) for digit in number["digits"]] == [("b", True), ("a", False)]
    assert number["digits"][0]["pixels"] == [9] * 784
    ((method, (picture,)),) = client.asked
    assert (method, max(picture.size)) == ("read", min(width, 1024))


@pytest.mark.skipif(not hasattr(DigitClient, "read"), reason="the client can't read numbers yet")
def test_a_number_in_a_picture_is_read(http):
    """Four digits of MNIST side by side, dark on white, are read in order, with boxes and what the model got."""
    paper = Image.new("L", (400, 120), 255)
    for place, digit in enumerate((2, 0, 4, 1)):
        ink = Image.open(ROOT / f"web/digits_web/page/samples/{digit}.png").getchannel("A").resize((84, 84))
        paper.paste(0, (15 + 92 * place, 18), ink)
    file = io.BytesIO()
    paper.save(file, "PNG")
    response = http.post("/api/read", content=file.getvalue(), headers={"content-type": "image/png"})
    number = conforms(response.raise_for_status().json(), "Number")
    assert (number["text"], number["width"], number["height"]) == ("2041", 400, 120)
    lefts = [digit["box"][0] for digit in number["digits"]]
    assert lefts == sorted(lefts)
    assert all(max(digit["pixels"]) > 200 for digit in number["digits"])


async def test_pictures_are_read_upright(ask):
    """A photograph that its EXIF calls turned is turned before it is read; the size is that of the upright one."""
    client = Client(read=SimpleNamespace(text="", digits=()))
    body = {"content": turned((300, 100)), "headers": {"content-type": "image/jpeg"}}
    number = (await ask(client, "POST", "/api/read", **body)).raise_for_status().json()
    assert (number["width"], number["height"]) == (100, 300)


async def test_only_pictures_can_be_read(ask):
    """A number needs a picture: other bodies are refused, naming what is allowed."""
    body = {"content": b"{}", "headers": {"content-type": "application/json"}}
    refused = problem(await ask(Client(), "POST", "/api/read", **body), 415)
    assert refused == "content-type: application/json; allowed are image/png and image/jpeg"


def test_server_away_is_said_in_words():
    """Without a server, calls answer 503 with its address and when to try again, and the gateway itself is alive."""
    with socket.socket() as taken:  # bound, and nobody listens: refused at once
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        gateway = start_gateway(f"--server={address}", f"--metrics-url=http://{address}/metrics")
        with httpx.Client(base_url=gateway.url, timeout=30) as http:
            for answer in (
                classify(http, b"\0" * 784, "application/octet-stream"),
                http.get("/api/models"),
                http.get("/api/health"),
            ):
                assert f"No server can be reached at {address}" in problem(answer, 503)
                assert answer.headers["retry-after"] == "1"
            assert "can't be read" in problem(http.get("/api/stats"), 503)
            assert http.get("/healthz").text == "ok\n"
        assert gateway.stop() == 0
