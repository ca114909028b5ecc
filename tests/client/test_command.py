"""The command `digits`, as its user meets it."""

import json
import re

import pytest
from click.testing import CliRunner
from packages import image_of
from PIL import Image

from digits_client.__main__ import main


@pytest.fixture
def digits(server):
    def run(*arguments):
        return CliRunner().invoke(main, arguments, env={"DIGITS_CLIENT_SERVER": server.address})

    return run


@pytest.fixture
def files(tmp_path):
    paths = []
    for digit in (3, 8):
        Image.fromarray(image_of(digit).reshape(28, 28)).save(tmp_path / f"{digit}.png")
        paths.append(str(tmp_path / f"{digit}.png"))
    return paths


def test_classify_prints_a_line_for_each_file(digits, files):
    """File, digit, confidence and model, one line each."""
    result = digits("classify", *files)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{files[0]}  3  100.0%  toy-b/1",
        f"{files[1]}  8  100.0%  toy-b/1",
    ]


def test_classify_says_what_is_odd(digits, tmp_path):
    """Flags of an image stand behind its line."""
    Image.new("L", (28, 28)).save(tmp_path / "blank.png")
    assert "BLANK" in digits("classify", str(tmp_path / "blank.png")).output


def test_classify_json(digits, files):
    """With --json each line is an object for programs."""
    answers = [json.loads(line) for line in digits("classify", "--json", *files).output.splitlines()]
    assert [answer["digit"] for answer in answers] == [3, 8]
    assert len(answers[0]["probabilities"]) == 10
    assert answers[0]["quality"] == []


def test_models_and_health(digits):
    """The models are listed with state and accuracy; health says ready."""
    lines = digits("models").output.splitlines()
    figures = r"test accuracy 50\.00%, batching helps [\d.]+x: 1 in \d+ us, 2 in .*, 1024 in [\d,]+ us"
    assert re.fullmatch(rf"toy-b/1  serving, default  {figures}", lines[-1])
    assert re.fullmatch(rf"toy-a/1  serving  {figures}", lines[0])
    assert digits("health").output == "ready\n"


@pytest.mark.parametrize("command", [["classify", "FILE"], ["models"], ["health"]])
def test_unreachable_server_is_one_clear_line(files, command):
    """Exit status 1 and a line that names the address; no stack."""
    arguments = [files[0] if word == "FILE" else word for word in command]
    result = CliRunner().invoke(main, [*arguments, "--server", "127.0.0.1:1", "--timeout-s", "3"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no server can be reached at 127.0.0.1:1: ")
    assert len(result.output.splitlines()) == 1


def test_unreadable_file_does_not_stop_the_others(digits, files, tmp_path):
    """A file that is no image is named in its place, in the table and in JSON; exit status 1."""
    (tmp_path / "text.png").write_text("hello")
    result = digits("classify", str(tmp_path / "text.png"), files[0])
    assert result.exit_code == 1
    assert f"{tmp_path}/text.png: can't be read as an image" in result.output.splitlines()[0]
    assert "  3  100.0%" in result.output.splitlines()[1]
    answer = json.loads(digits("classify", "--json", str(tmp_path / "text.png")).output)
    assert "can't be read" in answer["error"]


def test_folders_and_stdin(digits, files, tmp_path, server):
    """A folder stands for the images in it, in order; - for one on stdin."""
    (tmp_path / "notes.txt").write_text("no image")
    result = digits("classify", str(tmp_path))
    assert [line.split()[1] for line in result.output.splitlines()] == ["3", "8"]
    data = (tmp_path / "8.png").read_bytes()
    result = CliRunner().invoke(main, ["classify", "-", "--server", server.address], input=data)
    assert result.output == "-  8  100.0%  toy-b/1\n"


def test_a_folder_without_images_is_an_error(digits, tmp_path):
    """Nothing to do is said, with the names that would count; exit status 1."""
    result = digits("classify", str(tmp_path))
    assert result.exit_code == 1
    assert f"no images in {tmp_path}" in result.output


def test_show_draws(digits, files):
    """The 14 lines of the drawing hold the ink; a full bar stands at the digit."""
    lines = digits("classify", "--show", files[0]).output.splitlines()
    assert len(lines) == 15
    assert lines[1][3] == "▒"  # the toy model's mark: half of two rows
    assert lines[3 + 3].endswith("3 " + "█" * 30 + " 100.0%")


def test_watch(digits, server, files):
    """A line an interval: the rate and how long calls take, from the metrics page."""
    digits("health")
    arguments = ["watch", "--metrics", f"{server.metrics_url}/metrics", "--every-s", "0.01", "--count", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert len(re.findall(r"0\.0 req/s +0\.0 failed/s  p50 +- ms  p99 +- ms\n", result.output)) == 2


@pytest.mark.parametrize(
    ("url", "status", "complaint"),
    [("http://127.0.0.1:1/metrics", 1, "no metrics can be had from"), ("file:///etc", 2, "allowed are http://")],
)
def test_watch_without_a_page(url, status, complaint):
    """A page that can't be had is one clear line."""
    result = CliRunner().invoke(main, ["watch", "--metrics", url])
    assert result.exit_code == status
    assert complaint in result.output


def test_watch_ends_with_ctrl_c(monkeypatch):
    """Ctrl-C is the way to end it, not an error."""
    monkeypatch.setattr("digits_client.metrics.fetch", lambda _: None)
    monkeypatch.setattr("time.sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert CliRunner().invoke(main, ["watch"]).exit_code == 0


def test_servers_that_ask_who_calls(guarded):
    """Authority, certificate, key and token open a server that asks for them; half of a pair is refused."""
    address, flags, pair = guarded
    command = ["models", "--server", address, *flags]
    assert "toy-b/1  serving, default" in CliRunner().invoke(main, [*command, *pair]).output
    assert CliRunner().invoke(main, [*command, "--timeout-s=2"]).exit_code == 1
    result = CliRunner().invoke(main, [*command, pair[0]])
    assert result.exit_code == 2
    assert "certificate and key both or neither" in result.output


def test_completion():
    """The shell's completion knows the commands."""
    environment = {"_DIGITS_COMPLETE": "bash_complete", "COMP_WORDS": "digits cl", "COMP_CWORD": "1"}
    result = CliRunner().invoke(main, [], env=environment, prog_name="digits")
    assert "classify" in result.output


def test_unknown_model_is_one_clear_line(digits, files):
    """What the server refuses is printed as it said it; exit status 1."""
    result = digits("classify", "--model", "nope", files[0])
    assert result.exit_code == 1
    assert "NOT_FOUND: model: 'nope' is not served" in result.output


def test_help_names_the_variables():
    """The environment variables stand in the help."""
    text = CliRunner().invoke(main, ["classify", "--help"], terminal_width=120).output
    for variable in ("DIGITS_CLIENT_SERVER", "DIGITS_CLIENT_TIMEOUT_S", "DIGITS_CLIENT_MODEL"):
        assert variable in text
