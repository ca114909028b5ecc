"""The page, used in a real browser as people use it: mouse, finger, keyboard, files."""

import base64
import io
import re

import pytest
from conftest import ROOT, start_server
from gateways import start_gateway
from PIL import Image
from playwright.sync_api import expect
from strokes import DIGITS, draw

from digits_client import DigitClient

SOMETHING = re.compile(r"\w")
NOTHING = "\N{EN DASH}"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture
def page(visit, gateway):
    page = visit(gateway.url)
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#accuracy")).not_to_be_empty()
    return page


SHOWN_INK = "it => Math.max(...it.getContext('2d').getImageData(0, 0, 28, 28).data.filter((_, i) => i % 4 === 0))"


def shown(page):
    """Return the 28 x 28 that the page shows as what the model got, as 784 grey values."""
    return page.evaluate(
        "[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]"
        ".filter((_, i) => i % 4 === 0)"
    )


def answer(probabilities, labels):
    """Return what the API would say."""
    best = sorted(range(len(labels)), key=lambda index: -probabilities[index])
    return {
        "digit": best[0],
        "label": labels[best[0]],
        "confidence": probabilities[best[0]],
        "abstains": False,
        "probabilities": probabilities,
        "top": [{"digit": index, "label": labels[index], "probability": probabilities[index]} for index in best[:10]],
        "quality": [],
        "pixels": [0] * 784,
        "model": "m",
        "version": "1",
        "timing": {"queue_s": 0.0, "inference_s": 0.0, "batch_size": 1},
    }


@pytest.mark.parametrize("digit", range(10))
def test_drawn_digit_is_recognised(page, digit):
    """A digit drawn with the mouse is read right, and all that is said of it agrees."""
    draw(page, DIGITS[digit])
    expect(page.locator("#digit")).to_have_text(str(digit))
    expect(page.locator("#sentence")).to_contain_text("sure")
    expect(page.locator("#top li b").first).to_have_text(str(digit))
    expect(page.locator("#bars li.first .name")).to_have_text(str(digit))
    assert page.locator("#top li").count() == 3
    expect(page.locator("#announcement")).to_contain_text(f"{digit}, ")  # read out when the hand rests
    ink = shown(page)
    assert max(ink) > 200
    assert sum(value > 0 for value in ink) > 20


def test_bars_move_while_the_mouse_is_down(page):
    """Answers arrive during the stroke, before the button is let go."""
    page.mouse.move(*centre(page))
    page.mouse.down()
    answers = "0"
    for step in range(12):
        page.mouse.move(centre(page)[0], centre(page)[1] + 8 * step)
        expect(page.locator("body")).not_to_have_attribute("data-answers", answers)
        answers = page.locator("body").get_attribute("data-answers")
    expect(page.locator("#remark")).to_contain_text("Update ")
    page.mouse.up()


def centre(page):
    box = page.locator("#pad").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 3


PATIENT = "AbortSignal.timeout = () => new AbortController().signal"  # a busy machine draws slowly


def test_newest_drawing_wins_and_nothing_queues(page, gateway):
    """While an answer is slow no second request goes out; when it comes, one follows, with the newest drawing."""
    page.evaluate(PATIENT)
    held, bodies = [], []
    page.route("**/api/classify*", lambda route: (held.append(route), bodies.append(route.request.post_data_buffer)))
    draw(page, DIGITS[3])
    draw(page, [[(0.1, 0.1), (0.9, 0.9)]])
    assert len(bodies) == 1
    with page.expect_request("**/api/classify*"):
        held.pop().continue_()
    while not held:
        page.wait_for_timeout(10)
    assert len(bodies) == 2
    newest = page.evaluate(
        "() => { const small = document.createElement('canvas'); small.width = small.height = 168;"
        " const context = small.getContext('2d'); context.imageSmoothingQuality = 'high';"
        " context.drawImage(document.getElementById('pad'), 0, 0, 168, 168);"
        " return small.toDataURL('image/png').split(',')[1]; }"
    )
    assert bodies[-1] == base64.b64decode(newest)
    held.pop().continue_()
    page.unroute_all(behavior="wait")


def test_undo_and_clear(page):
    """Undo takes back the last stroke, a clear, or a sample; each time the answer follows."""
    undo, clear, digit = page.locator("#undo"), page.locator("#clear"), page.locator("#digit")
    expect(undo).to_be_disabled()
    draw(page, DIGITS[1])
    expect(digit).to_have_text("1")
    page.get_by_role("button", name="MNIST’s 8").click()
    expect(digit).to_have_text("8")
    clear.click()
    expect(page.locator("#sentence")).to_have_text("Nothing drawn yet")
    assert max(shown(page)) == 0
    undo.click()
    expect(digit).to_have_text("8")
    page.keyboard.press("Control+z")
    expect(digit).to_have_text("1")
    undo.click()
    expect(page.locator("#sentence")).to_have_text("Nothing drawn yet")
    expect(undo).to_be_disabled()
    expect(clear).to_be_disabled()


@pytest.mark.parametrize("digit", range(10))
def test_sample_arrives_as_mnist_has_it(page, digit):
    """A sample is recognised, and the model gets it pixel for pixel as it is in MNIST."""
    page.get_by_role("button", name=f"MNIST’s {digit}").click()
    expect(page.locator("#bars li.first .name")).to_have_text(str(digit))
    expect(page.locator("body")).to_have_attribute("data-answers", "1")
    alpha = page.evaluate(
        "async (digit) => { const image = new Image(); image.src = `samples/${digit}.png`; await image.decode();"
        " const canvas = document.createElement('canvas'); canvas.width = canvas.height = 28;"
        " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        " return [...context.getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 3); }",
        digit,
    )
    assert shown(page) == alpha


def test_photo_is_recognised(page):
    """A chosen photograph is shown, prepared and read; so is one that is dropped, and the pad says its name."""
    photo = ROOT / "docs/samples/photo-of-4.jpg"
    page.set_input_files("#photo", photo)
    expect(page.locator("#digit")).to_have_text("4")
    expect(page.locator("#pad")).to_have_attribute("aria-label", "Drawing area, showing photo-of-4.jpg")
    page.get_by_role("button", name="Clear").click()
    page.evaluate(
        "(bytes) => { const data = new DataTransfer();"
        " data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], 'dropped.jpg',"
        " { type: 'image/jpeg' }));"
        " document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })); }",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    expect(page.locator("#digit")).to_have_text("4")
    expect(page.locator("#pad")).to_have_attribute("aria-label", "Drawing area, showing dropped.jpg")


def test_large_photo_is_shrunk_before_it_is_sent(page, tmp_path):
    """A photograph of a telephone's size leaves the browser as a small one, in whatever format it was."""
    Image.open(ROOT / "docs/samples/photo-of-4.jpg").resize((3000, 2250)).save(tmp_path / "large.webp")
    sent = []
    page.route("**/api/classify*", lambda route: (sent.append(route.request), route.continue_()))
    page.set_input_files("#photo", tmp_path / "large.webp")
    expect(page.locator("#digit")).to_have_text("4")
    assert [request.headers["content-type"] for request in sent] == ["image/jpeg"]
    assert Image.open(io.BytesIO(sent[0].post_data_buffer)).size == (800, 600)


def test_odd_pictures_are_spoken_about(page, tmp_path):
    """A blank sheet is called so and nothing is claimed about it; a file that is no picture is refused by name."""
    Image.new("L", (200, 200), 255).save(tmp_path / "blank.png")
    page.set_input_files("#photo", tmp_path / "blank.png")
    expect(page.locator("#sentence")).to_have_text("Nothing to read")
    expect(page.locator("#remark")).to_contain_text("There is no ink.")
    (tmp_path / "notes.txt").write_text("7")
    page.set_input_files("#photo", tmp_path / "notes.txt")
    expect(page.locator("#remark")).to_have_text("notes.txt is no picture that this browser can read.")
    expect(page.locator("#announcement")).to_contain_text("Can’t be read.")
    expect(page.locator("#pad")).to_have_attribute("aria-label", "Drawing area, empty")  # not the one before


def test_abstention_is_shown_as_such(page):
    """Where the model abstains no digit is claimed: a question mark, the two likeliest, another colour."""
    unsure = {
        **answer([0, 0, 0, 0, 0.41, 0, 0, 0.2, 0, 0.39], "0123456789"),
        "abstains": True,
        "quality": ["LOW_CONFIDENCE"],
    }
    page.route("**/api/classify*", lambda route: route.fulfill(json=unsure))
    draw(page, DIGITS[4])
    expect(page.locator("#digit")).to_have_text("?")
    expect(page.locator("#sentence")).to_have_text("Abstains: 4 or 9?")
    expect(page.locator(".answer")).to_contain_class("unsure")


def test_a_late_answer_is_dimmed(page):
    """While the service takes long over more ink, the answer to the drawing before is dimmed; the next is not."""
    draw(page, DIGITS[1])
    expect(page.locator("#digit")).to_have_text("1")
    page.evaluate(PATIENT)
    held, is_slow = [], [True]
    page.route("**/api/classify*", lambda route: held.append(route) if is_slow else route.continue_())
    draw(page, [[(0.3, 0.5), (0.7, 0.5)]])
    expect(page.locator(".verdict")).to_have_css("opacity", "0.35")
    is_slow.clear()
    held.pop().continue_()
    expect(page.locator(".verdict")).to_have_css("opacity", "1")


def test_another_drawing_clears_the_answer_at_once(page):
    """After undo, clear or a picture nothing is left of the answer before, however long the next takes."""
    page.get_by_role("button", name="MNIST’s 8").click()
    expect(page.locator("#digit")).to_have_text("8")
    page.route("**/api/classify*", lambda route: None)
    page.get_by_role("button", name="MNIST’s 3").click()
    expect(page.locator("#digit")).to_have_text(NOTHING)
    assert max(shown(page)) == 0


def served(name, labels, **more):
    """Return a model as /api/models lists it."""
    model = {"name": name, "version": "1", "is_default": False, "is_serving": True, "reason": "", "test_accuracy": 0}
    return {**model, "labels": list(labels), "batching_gain": 1.0, **more}


def test_bars_fit_the_models_classes(page):
    """Of many classes the ten likeliest have a bar, and one is for the rest; of few each has one, in their order."""
    models = [served("letters", "abcdefghijklmnopqrstuvwxyz"), served("coins", ["heads", "tails"])]
    page.route("**/api/models", lambda route: route.fulfill(json={"models": models}))
    letters = answer([0.01] * 16 + [0.75] + [0.01] * 9, "abcdefghijklmnopqrstuvwxyz")
    answers = {"letters": letters, "coins": answer([0.2, 0.8], ["heads", "tails"])}
    page.route("**/api/classify*", lambda route: route.fulfill(json=answers[route.request.url.partition("=")[2]]))
    page.reload()
    expect(page.locator("#accuracy")).to_have_text("accuracy unknown")
    expect(page.locator("#bars .name")).to_have_text([NOTHING] * 10 + ["rest"])
    draw(page, DIGITS[9])
    expect(page.locator("#digit")).to_have_text("q")
    expect(page.locator("#bars .name")).to_have_text([*"qabcdefghi", "rest"])
    expect(page.locator("#bars .share").last).to_have_text("16%")
    page.locator("#model").select_option("coins")
    expect(page.locator("#digit")).to_have_text("tails")
    expect(page.locator("#bars .name")).to_have_text(["heads", "tails"])
    expect(page.locator("#bars .first .name")).to_have_text("tails")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_models_are_told_apart_and_chosen(page):
    """The most accurate of the models with the default's labels is chosen, with its accuracy, and others can be."""
    expect(page.locator("#model")).to_have_value("digits-cnn")
    expect(page.locator("#model option")).to_have_text(["digits-cnn/3", "digits-mlp/3"])
    expect(page.locator("#accuracy")).to_contain_text("99.")
    draw(page, DIGITS[6])
    expect(page.locator("#digit")).to_have_text("6")
    with page.expect_request("**/api/classify?model=digits-mlp"):
        page.locator("#model").select_option("digits-mlp")
    expect(page.locator("#digit")).to_have_text("6")
    models = [
        served("mine", "0123456789", is_default=True, test_accuracy=0.9, dataset="street numbers"),
        served("letters", "abc", test_accuracy=0.99),
        served("broken", "0123456789", test_accuracy=1, is_serving=False, reason="refused"),
    ]
    page.route("**/api/models", lambda route: route.fulfill(json={"models": models}))
    page.reload()
    expect(page.locator("#model option")).to_have_text(["mine/1", "letters/1"])
    expect(page.locator("#model")).to_have_value("mine")
    expect(page.locator("#accuracy")).to_have_text("90.00 % on street numbers")


def test_a_number_is_read_with_boxes(page):
    """Of a number each digit has a box on the drawing and an answer of its own; unsure ones are told."""
    sure, unsure = answer([0.02, 0.98], "01"), answer([0.6, 0.4], "01")
    number = {
        "text": "10",
        "width": 560,
        "height": 560,
        "digits": [
            {**sure, "box": [56, 112, 140, 280], "is_touching": False},
            {**unsure, "abstains": True, "box": [280, 112, 140, 280], "is_touching": True},
        ],
    }
    sent = []
    page.route("**/api/read*", lambda route: (sent.append(route.request.post_data_buffer), route.fulfill(json=number)))
    page.get_by_text("Number", exact=True).click()
    draw(page, [[(0.2, 0.3), (0.2, 0.6)]])
    expect(page.locator("#digit")).to_have_text("10")
    expect(page.locator("#sentence")).to_have_text("Not sure of 1 of 2")
    expect(page.locator("#number li b")).to_have_text(["1", "0"])
    expect(page.locator("#number li").nth(1)).to_contain_text("1 40.0 %")
    expect(page.locator("#number li").nth(1)).to_contain_text("touching")
    pad, box = page.locator("#pad").bounding_box(), page.locator("#boxes span").first.bounding_box()
    for edge, side, share in (("x", "width", 0.1), ("y", "height", 0.2)):
        assert (box[edge] - pad[edge]) / pad[side] == pytest.approx(share, abs=0.01)
    assert box["height"] / pad["height"] == pytest.approx(0.5, abs=0.01)
    assert Image.open(io.BytesIO(sent[0])).size == (560, 560)
    expect(page.locator("#bars")).to_be_hidden()
    expect(page.locator("#announcement")).to_contain_text("10, Not sure of 1 of 2.")
    page.locator("#clear").click()
    expect(page.locator("#boxes span")).to_have_count(0)
    page.get_by_text("Single digit").click()
    expect(page.locator("#bars")).to_be_visible()


def test_boxes_lie_on_a_photo(page):
    """A photograph's boxes lie where the photograph does on the pad."""
    number = {"text": "4", "width": 400, "height": 300, "digits": [{**answer([1], "4"), "box": [0, 0, 400, 300]}]}
    page.route("**/api/read*", lambda route: route.fulfill(json=number))
    page.get_by_text("Number", exact=True).click()
    page.set_input_files("#photo", ROOT / "docs/samples/photo-of-4.jpg")
    expect(page.locator("#digit")).to_have_text("4")
    pad, box = page.locator("#pad").bounding_box(), page.locator("#boxes span").bounding_box()
    assert (box["y"] - pad["y"]) / pad["height"] == pytest.approx(1 / 8, abs=0.01)
    assert box["width"] / pad["width"] == pytest.approx(1, abs=0.01)


@pytest.mark.skipif(not hasattr(DigitClient, "read"), reason="the client can't read numbers yet")
def test_drawn_number_is_read(page):
    """A number drawn with the mouse is read, each digit in a box of its own, with what the model got of it."""
    page.get_by_text("Number", exact=True).click()
    for place, digit in enumerate((2, 0, 7)):
        draw(page, [[(0.05 + 0.3 * (place + x), 0.3 + 0.4 * y) for x, y in stroke] for stroke in DIGITS[digit]])
    expect(page.locator("#digit")).to_have_text("207")
    expect(page.locator("#number li b")).to_have_text(["2", "0", "7"])
    lefts = page.locator("#boxes span").evaluate_all("boxes => boxes.map(box => box.getBoundingClientRect().x)")
    assert len(lefts) == 3
    assert lefts == sorted(lefts)
    for canvas in page.locator("#number canvas").all():
        assert canvas.evaluate(SHOWN_INK) > 200


def test_keyboard_is_enough(page):
    """From the address bar on, Tab reaches the pad, and arrows and Space draw a 1 on it; Delete clears it."""
    for name in ("#model", "#mode-digit", "#pad"):
        page.keyboard.press("Tab")
        expect(page.locator(name)).to_be_focused()
    for key in ["ArrowUp"] * 14 + [" "] + ["ArrowDown"] * 27 + [" ", "ArrowRight"]:
        page.keyboard.press(key)
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#pad")).to_have_attribute("aria-label", "Drawing area, 1 strokes")
    for name in ("Undo", "Clear"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#photo")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#digit")).to_have_text("0")
    page.locator("#pad").focus()
    page.keyboard.press("Delete")
    expect(page.locator("#sentence")).to_have_text("Nothing drawn yet")


def test_everything_has_a_name_and_a_role(page):
    """What a screen reader meets: landmarks, a described pad, named buttons, ten probabilities, a polite status."""
    draw(page, DIGITS[7])
    expect(page.locator("#announcement")).to_contain_text("7, ")
    expect(page.get_by_role("application", name="Drawing area")).to_have_accessible_description(
        "Mouse, finger or keyboard: arrow keys move the pen, Space puts it down and lifts it, "
        "Ctrl+Z undoes, Delete clears."
    )
    for role, name in [
        ("banner", None),
        ("main", None),
        ("combobox", "Model"),
        ("radio", "Single digit"),
        ("region", "Draw or photograph"),
        ("region", "What the model says"),
        ("region", "The service, live"),
        ("list", "Probability of each class"),
        ("img", "What the model gets: the drawing in 28 by 28 pixels"),
        ("status", None),
    ]:
        assert page.get_by_role(role, name=name).count() >= 1, (role, name)
    assert page.get_by_role("list", name="Probability of each class").get_by_role("listitem").count() == 10
    for button in page.get_by_role("button").all():
        expect(button).to_have_accessible_name(SOMETHING)


CONTRAST = """() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, :disabled, .stale")) continue;
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{"viewport": {"width": 1280, "height": 860}}, PHONE], ids=["desktop", "phone"])
def test_looks_fit_screen_and_scheme(visit, gateway, device, scheme):
    """On a desktop and a phone, light and dark, nothing is cut off sideways and all text has a contrast of 4.5:1."""
    page = visit(gateway.url, color_scheme=scheme, **device)
    draw(page, DIGITS[5])
    expect(page.locator("#digit")).to_have_text("5")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CONTRAST) == []


def test_finger_draws_without_scrolling(visit, gateway):
    """On a phone a finger draws, a second finger does not, and the page stays where it is."""
    page = visit(gateway.url, **PHONE)
    touch = page.context.new_cdp_session(page)
    box = page.locator("#pad").bounding_box()
    x, top, bottom = (
        box["x"] + box["width"] / 2,
        box["y"] + box["height"] * 0.15,
        box["y"] + box["height"] * 0.85,
    )

    def send(kind, *points):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    send("touchStart", {"x": x, "y": top, "id": 1})
    for step in range(1, 13):
        send("touchMove", {"x": x, "y": top + (bottom - top) * step / 12, "id": 1})
    send("touchStart", {"x": x, "y": bottom, "id": 1}, {"x": x + 80, "y": top, "id": 2})
    send("touchEnd")
    expect(page.locator("#digit")).to_have_text("1")
    expect(page.locator("#pad")).to_have_attribute("aria-label", "Drawing area, 1 strokes")
    assert page.evaluate("scrollY") == 0


def test_live_panel_shows_the_service(page):
    """The panel shows the server's latency and throughput once there are calls."""
    draw(page, DIGITS[2])
    expect(page.locator("#p50")).to_contain_text("s")  # of µs or ms
    expect(page.locator("#p99")).to_contain_text("s")
    expect(page.locator("#requests")).to_contain_text("/s")
    expect(page.locator("#requests + svg polyline")).to_have_attribute("points", SOMETHING)


def test_answers_cut_off_do_no_harm(page):
    """An answer that is no JSON counts as no answer: the page says so, and goes on asking."""
    page.route("**/api/stats", lambda route: route.fulfill(body='{"source": '))
    expect(page.locator("#live-note")).to_contain_text("answer can’t be read, status 200")
    page.unroute("**/api/stats")
    expect(page.locator("#live-note")).to_contain_text("All callers")


def test_server_away_is_said_and_recovery_needs_no_reload(visit, tmp_path):
    """When the server goes the page says so, keeps the drawing, and has the answer when the server is back."""
    server = start_server(ROOT / "models", tmp_path)
    gateway = start_gateway(f"--server={server.address}", f"--metrics-url={server.metrics_url}/metrics")
    page = visit(gateway.url)
    expect(page.locator("#state")).to_have_text("Ready")
    draw(page, DIGITS[7])
    expect(page.locator("#digit")).to_have_text("7")
    before = page.locator("#pad").bounding_box()
    assert server.stop() == 0
    expect(page.locator("#state")).to_have_text("Unreachable")
    expect(page.get_by_role("alert")).to_contain_text("The service can’t be reached.")
    expect(page.locator("#outage-detail")).to_contain_text(f"No server can be reached at {server.address}")
    assert page.locator("#pad").bounding_box() == before  # nothing moved under the hand
    expect(page.locator("#digit")).to_have_text("7")  # the drawing is still the one that the answer is about
    draw(page, DIGITS[1])
    expect(page.locator("#sentence")).to_have_text("No answer yet")
    expect(page.locator("#digit")).to_have_text(NOTHING)
    page.locator("#clear").click()
    draw(page, DIGITS[2])
    expect(page.locator("#sentence")).to_have_text("No answer yet")

    again = start_server(ROOT / "models", tmp_path, f"--port={server.address.rpartition(':')[2]}")
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#digit")).to_have_text("2")
    expect(page.locator("#outage")).to_be_hidden()

    assert gateway.stop() == 0
    expect(page.locator("#outage-detail")).to_contain_text("gateway does not answer")
    assert again.stop() == 0
