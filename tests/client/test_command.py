"""The command `digits`, as its user meets it."""

import json

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
        f"{files[0]}: 3  100.0%  (toy-b/1)",
        f"{files[1]}: 8  100.0%  (toy-b/1)",
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
    assert "toy-b/1  serving, default  test accuracy 50.00%" in digits("models").output
    assert digits("health").output == "ready\n"


@pytest.mark.parametrize("command", [["classify", "FILE"], ["models"], ["health"]])
def test_unreachable_server_is_one_clear_line(files, command):
    """Exit status 1 and a line that names the address; no stack."""
    arguments = [files[0] if word == "FILE" else word for word in command]
    result = CliRunner().invoke(main, [*arguments, "--server", "127.0.0.1:1", "--timeout-s", "3"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no server can be reached at 127.0.0.1:1: ")
    assert len(result.output.splitlines()) == 1


def test_unreadable_file_is_one_clear_line(digits, tmp_path):
    """A file that is no image is named; exit status 1."""
    (tmp_path / "text.png").write_text("hello")
    result = digits("classify", str(tmp_path / "text.png"))
    assert result.exit_code == 1
    assert f"{tmp_path}/text.png: can't be read as an image" in result.output


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
