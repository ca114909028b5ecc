"""The command `digits`, as its user meets it."""

import dataclasses
import json
import os
import re
import string
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, mnist_test_set, start_server
from packages import write_package
from PIL import Image
from stub_server import Servicer, answer, serving

from digits.v1 import classifier_pb2 as pb
from digits_client import DigitClient, Model, _terminal
from digits_client.__main__ import main
from digits_client.testing import FakeTransport

MODEL = Model(
    name="letters",
    version="1",
    is_default=False,
    is_serving=True,
    state="serving",
    reason="",
    test_accuracy=0.0,
    batching_gain=1.0,
    batch_costs={},
)


def run(arguments, env):
    command = [sys.executable, "-m", "digits_client", *arguments]
    return subprocess.run(command, check=False, capture_output=True, env=os.environ | env, timeout=60)


@pytest.fixture
def digits(server):
    def run(*arguments):
        return CliRunner().invoke(main, arguments, env={"DIGITS_CLIENT_SERVER": server.address})

    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory, transport):
    """The shipped models: what the command is given are pictures."""
    server = start_server(ROOT / "models", tmp_path_factory.mktemp("server"), f"--transport={transport}")
    yield server
    assert server.stop() == 0


@pytest.fixture
def files(tmp_path):
    """A 3 and an 8 of MNIST's test set, of which the model is sure."""
    images, _ = mnist_test_set()
    paths = []
    for digit, index in ((3, 30), (8, 61)):
        Image.fromarray(images[index].reshape(28, 28)).save(tmp_path / f"{digit}.png")
        paths.append(str(tmp_path / f"{digit}.png"))
    return paths


def test_classify_prints_a_line_for_each_file(digits, files):
    """File, digit, confidence and model, one line each."""
    result = digits("classify", *files)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{files[0]}  3  100.0%  digits-cnn/3",
        f"{files[1]}  8  100.0%  digits-cnn/3",
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


def test_read_prints_a_number_for_each_file(digits, tmp_path):
    """A picture of several digits gives a line with the number and its least confidence; blank paper, a reason."""
    images, _ = mnist_test_set()
    page = np.full((80, 200), 255, np.uint8)
    for place, index in enumerate((30, 61)):  # a 3 and an 8
        page[26:54, 50 + 50 * place : 78 + 50 * place] = 255 - images[index].reshape(28, 28)
    number, blank = str(tmp_path / "number.png"), str(tmp_path / "blank.png")
    Image.fromarray(page).save(number)
    Image.fromarray(np.full((80, 200), 255, np.uint8)).save(blank)
    result = digits("read", number, blank)
    lines = result.output.splitlines()
    assert result.exit_code == 1
    assert re.fullmatch(rf"{number}  38   *(\d\d\.\d|100\.0)%", lines[0])
    assert lines[1].startswith(f"{blank}   -  image: shows nothing to read")
    assert len(lines) == 2

    first, second = map(json.loads, digits("read", "--json", number, blank).output.splitlines())
    assert (first["file"], first["text"]) == (number, "38")
    assert [digit["label"] for digit in first["digits"]] == ["3", "8"]
    for digit, left in zip(first["digits"], (50, 100), strict=True):
        x, y, width, height = digit["box"]
        assert left - 2 <= x < x + width <= left + 30
        assert 24 <= y < y + height <= 56
    assert set(second) == {"file", "error"}


@pytest.fixture(scope="module")
def various(tmp_path_factory):
    """A server of models that differ in accuracy and labels."""
    root = tmp_path_factory.mktemp("models")

    def write(version, accuracy, **options):
        training = json.dumps({"recipe": "toy", "test_accuracy": accuracy})
        write_package(root / version, metadata={"digits.training": training}, **options)

    write("usual/1", 0.5)
    write("usual/2", 0.5)
    write("better/1", 0.9)
    write("better/2", 1.0, gives_logits=True)  # is refused
    write("worse-now/1", 0.95)
    write("worse-now/2", 0.4)
    write("letters/1", 0.99, labels=list("abcdefghij"))
    server = start_server(root, tmp_path_factory.mktemp("server"), "--default-model=usual")
    yield server
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ([], "better/1"),
        (["--model=usual"], "usual/2"),
        (["--model=letters"], "letters/1"),
        (["--model-version=1"], "usual/1"),
        (["--model=worse-now", "--model-version=1"], "worse-now/1"),
    ],
)
def test_the_most_accurate_model_is_asked(various, files, named, asked):
    """Where none is named: of the latest that serve, with the default's labels. A version alone is the default's."""
    result = CliRunner().invoke(main, ["classify", "--json", files[0], "--server", various.address, *named])
    answer = json.loads(result.output)
    assert f"{answer['model']}/{answer['version']}" == asked


def listed(name, accuracy=0.0, state=pb.MODEL_STATE_SERVING, **more):
    return pb.Model(name=name, version="1", state=state, labels="0123456789", test_accuracy=accuracy, **more)


@pytest.mark.parametrize(
    ("models", "named", "asked"),
    [
        ([listed("better", 0.9), listed("usual", 0.5, is_default=True)], [], ("better", "")),
        ([listed("better", 0.9), listed("usual", 0.5, is_default=True)], ["--model=usual"], ("usual", "")),
        ([listed("better", 0.9), listed("usual", 0.5, is_default=True)], ["--model-version=1"], ("", "1")),
        ([listed("as-good", 0.9), listed("usual", 0.9, is_default=True)], [], ("usual", "")),
        ([listed("unknown"), listed("usual", is_default=True)], [], ("usual", "")),
        ([listed("other", 0.9), listed("usual", state=pb.MODEL_STATE_LOADING)], [], ("", "")),
        ([], [], ("", "")),
        (grpc.StatusCode.UNIMPLEMENTED, [], ("", "")),
        (grpc.StatusCode.PERMISSION_DENIED, [], ("", "")),
    ],
)
def test_the_default_is_asked_unless_one_is_known_to_be_better(files, models, named, asked):
    """For numbers too. A tie, an unknown accuracy, no default to compare with and no list leave the default."""

    class Listing(Servicer):
        def ListModels(self, request, context):  # noqa: N802 - named by the .proto
            if isinstance(models, grpc.StatusCode):
                context.abort(models, "no")
            return pb.ListModelsResponse(models=models)

    requests = []
    with serving(Listing(lambda request, _: requests.append(request) or answer(request))) as port:
        result = CliRunner().invoke(main, ["read", files[0], "--server", f"127.0.0.1:{port}", *named])
    assert result.exit_code == 0
    assert [(request.model, request.version) for request in requests] == [asked]


def test_models_and_health(digits):
    """The models are listed, one on a line of 100 characters at most, with state and accuracy; health says ready."""
    lines = digits("models").output.splitlines()
    figures = r"10 classes  accuracy 99\.\d\d%  batching gains [\d.]+x"
    assert re.fullmatch(rf"digits-cnn/3  serving  {figures}", lines[0])
    assert re.fullmatch(rf"digits-mlp/3  serving, default  {figures}", lines[1])
    assert len(lines) == 2
    assert max(map(len, lines)) <= 100
    assert digits("health").output == "ready\n"


def test_models_in_detail(digits):
    """With --verbose stand the data set's name, labels and costs below each model."""
    lines = digits("models", "--verbose").output.splitlines()
    assert lines[1:3] == ["    measured on: MNIST", "    labels: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"]
    assert re.fullmatch(r"    time of a batch: 1 in \d+ us, 2 in .*", lines[3])


def test_models_of_any_kind_fit_a_line():
    """A long reason is cut and stays on its line, an accuracy that nobody measured is unknown, not zero."""
    model = dataclasses.replace(MODEL, labels=tuple("ABC"), batching_gain=2.0)
    assert _terminal.model_line(model, 9) == "letters/1  serving  3 classes  accuracy unknown  batching gains 2.0x"
    model = dataclasses.replace(MODEL, version="2", is_serving=False, state="refused", reason="no\nway " * 50)
    assert _terminal.model_line(model, 9).startswith("letters/2  refused  (no way no way")
    assert len(_terminal.model_line(model, 9)) <= 100
    assert _terminal.model_details(model).count("\n") == 1
    assert _terminal.model_details(model).endswith("way")


@pytest.mark.parametrize("command", [["classify", "FILE"], ["read", "FILE"], ["models"], ["health"]])
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
    name = f"{tmp_path}/text.png"
    assert result.output.splitlines()[0] == f"{name}  -  can't be read as a picture: it is in none of the known formats"
    assert "  3  100.0%" in result.output.splitlines()[1]
    answer = json.loads(digits("classify", "--json", str(tmp_path / "text.png")).output)
    assert "can't be read" in answer["error"]


def test_folders_and_stdin(digits, files, tmp_path, server):
    """A folder stands for the images in it, in order, but for hidden ones as macOS makes; - for one on stdin."""
    (tmp_path / "._3.png").write_bytes(b"no image")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "3.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    result = digits("classify", str(tmp_path))
    assert [line.split()[1] for line in result.output.splitlines()] == ["3", "8"]
    data = (tmp_path / "8.png").read_bytes()
    result = CliRunner().invoke(main, ["classify", "-", "--server", server.address], input=data)
    assert result.output == "-  8  100.0%  digits-cnn/3\n"


@pytest.mark.parametrize("command", ["classify", "read"])
def test_a_folder_without_images_is_an_error(digits, tmp_path, command):
    """Nothing to do is said, with the names that would count; exit status 2."""
    result = digits(command, str(tmp_path))
    assert result.exit_code == 2
    assert f"no images in {tmp_path}" in result.output


def test_show_draws(digits, files):
    """The 14 lines of the drawing hold the ink; a full bar stands at the digit."""
    lines = digits("classify", "--show", files[0]).output.splitlines()
    assert len(lines) == 15
    assert {"░", "▒", "▓", "█"} & set("".join(line[:28] for line in lines[1:]))
    assert lines[3 + 3].endswith("3 " + "█" * 30 + " 100.0%")


def test_watch_counts_what_classify_sends(digits, server, files):
    """A line an interval: images of streams count, as those that the command sends."""
    stop = threading.Event()

    def classify():
        while not stop.is_set():
            digits("classify", *files)

    command = [
        sys.executable,
        "-m",
        "digits_client",
        "watch",
        "--every-s=0.2",
        f"--metrics={server.metrics_url}/metrics",
    ]
    sender = threading.Thread(target=classify)
    sender.start()
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            rates = (float(re.match(r" *([\d.]+) images/s", line)[1]) for line in process.stdout)
            assert next(rate for rate in rates if rate) > 0
            process.terminate()
    finally:
        stop.set()
        sender.join()


def test_watch_prints_as_many_lines_as_asked(server):
    """With --count it ends by itself; without calls there is no latency."""
    arguments = ["watch", "--metrics", f"{server.metrics_url}/metrics", "--every-s", "0.01", "--count", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    figures = r" +[\d.]+ images/s +[\d.]+ calls/s +[\d.]+ failed/s  p50 +\S+ ms  p99 +\S+ ms"
    assert [bool(re.fullmatch(figures, line)) for line in result.output.splitlines()] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (
            ["--metrics=http://127.0.0.1:1/metrics"],
            1,
            "no metrics can be had from http://127.0.0.1:1/metrics: Connection refused",
        ),
        (["--metrics=file:///etc"], 2, "allowed are http://"),
        (["--every-s=nan"], 2, "--every-s: nan; allowed are numbers above 0"),
        (["--every-s=inf"], 2, "--every-s: inf"),
    ],
)
def test_watch_without_a_page(arguments, status, complaint):
    """Metrics that can't be had, and intervals that can't be kept, are one clear line."""
    result = CliRunner().invoke(main, ["watch", *arguments])
    assert result.exit_code == status
    assert complaint in result.output
    assert len(result.output.splitlines()) == 1


def test_watch_without_the_parser_says_what_to_install(monkeypatch):
    """The optional dependency is named, with the extra that brings it."""
    monkeypatch.delitem(sys.modules, "digits_client.watch", raising=False)
    monkeypatch.delattr("digits_client.watch", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    result = CliRunner().invoke(main, ["watch"])
    assert result.exit_code == 2
    assert "pip install 'digits-client[watch]'" in result.output
    assert len(result.output.splitlines()) == 1


def test_watch_ends_with_ctrl_c(monkeypatch):
    """Ctrl-C is the way to end it, not an error."""
    monkeypatch.setattr("digits_client.watch.read", lambda _: None)
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
    assert len(result.output.splitlines()) == 1
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


@pytest.mark.parametrize(("encoding", "bar"), [("cp1252", "#"), ("latin-1", "#"), ("cp437", "█"), ("utf-8", "█")])
def test_show_in_any_encoding(server, files, encoding, bar):
    """A terminal whose encoding has no blocks gets a drawing of plain characters, and names of files escaped."""
    named = Path(files[0]).with_name("dr\u0119\u4e09.png")
    named.write_bytes(Path(files[0]).read_bytes())
    done = run(["classify", "--show", str(named), "--server", server.address], env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert bar * 30 + " 100.0%" in done.stdout.decode(encoding)


@pytest.mark.parametrize("command", [["classify", "FILE"], ["models"], ["health"], ["--help"]])
@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", "> /dev/full 2> /dev/full", ">&- 2>&-"])
def test_output_that_cannot_be_written_is_one_line(server, files, command, redirection):
    """A full disk, or no output at all, is said in a line, exit status 2; no stack."""
    words = [files[0] if word == "FILE" else word for word in command]
    shell = f"exec {sys.executable} -m digits_client {' '.join(words)} {redirection}"
    environment = os.environ | {"DIGITS_CLIENT_SERVER": server.address}
    done = subprocess.run(shell, check=False, shell=True, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == ("2>" not in redirection)
    assert done.stderr.startswith(b"" if "2>" in redirection else b"Error: standard output")
    assert b"Traceback" not in done.stderr


def test_closed_input_is_one_line(server):
    """`-` without a standard input is said in a line, exit status 2."""
    shell = f"exec {sys.executable} -m digits_client classify - --server {server.address} <&-"
    done = subprocess.run(shell, check=False, shell=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, b"Error: -: standard input is closed\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--server", "http://127.0.0.1:50051"], "has a scheme that is none of gRPC's"),
        (["--server", "localhost"], "'localhost' has no port"),
        (["--server", ""], "'' has no port"),
        (["--server", "127.0.0.1:107536"], "has the port '107536'; allowed are 1 to 65535"),
        (["--timeout-s", "inf"], "timeout_s: inf; allowed are numbers above 0"),
        (["--timeout-s", "nan"], "timeout_s: nan"),
        (["--token", "a\u00e9"], "token: '\u00e9' at position 1"),
        (["--tls-ca", "/dev/null"], "tls: ca: /dev/null, 0 bytes"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(arguments, complaint):
    """What the user can mend is said in a line before anything is sent; exit status 2."""
    result = CliRunner().invoke(main, ["models", *arguments])
    assert result.exit_code == 2
    assert complaint in result.output
    assert len(result.output.splitlines()) == 1


def test_a_token_may_end_with_a_newline(guarded):
    """As tokens do that come out of a file."""
    address, flags, pair = guarded
    result = CliRunner().invoke(main, ["models", "--server", address, *flags[:-1], flags[-1] + "\n", *pair])
    assert result.exit_code == 0


def letters(classes):
    """Return labels and the prediction of a model of that many classes, sure of the last but one."""
    labels = tuple(string.ascii_uppercase) if classes == 26 else tuple(f"class {number}" for number in range(classes))
    client = DigitClient(transport=FakeTransport(classes - 2, labels))
    return labels, client.classify(np.ones((28, 28), bool))


@pytest.mark.parametrize("classes", [2, 10, 26, 1000])
def test_models_of_any_number_of_classes_are_shown(classes):
    """Line, JSON and drawing show the label; of many classes the drawing has the ten best."""
    labels, prediction = letters(classes)
    assert _terminal.line("a.png", prediction, 5) == f"a.png  {labels[-2]}  100.0%  fake/1"
    answer = json.loads(_terminal.as_json("a.png", prediction))
    assert (answer["digit"], answer["label"], len(answer["probabilities"])) == (classes - 2, labels[-2], classes)
    lines = _terminal.drawing(np.ones((28, 28), bool), prediction, "utf-8").splitlines()
    assert len(lines) == 14
    assert next(line for line in lines if line.endswith("100.0%")).endswith(f"{labels[-2]} {'█' * 30} 100.0%")
    assert sum(line.endswith("%") for line in lines) == min(classes, 10)


def test_what_servers_say_stays_on_its_line():
    """Labels and names that would break the line, or control the terminal, are shown escaped."""
    client = DigitClient(transport=FakeTransport(0, ["\x1b[31mred\n", "b"]))
    assert "\\x1b[31mred\\n" in _terminal.line("a\nb", client.classify(np.ones(784)), 4)
    assert len(_terminal.line("a\nb", client.classify(np.ones(784)), 4).splitlines()) == 1


def test_json_is_exact():
    """Programs get every digit of the probabilities, people get them rounded."""
    third = np.float32(1 / 3)
    prediction = DigitClient(transport=FakeTransport([third] * 3, "abc")).classify(np.ones(784))
    assert np.float32(json.loads(_terminal.as_json("a", prediction))["confidence"]) == third
    assert " 33.3%" in _terminal.line("a", prediction, 1)
