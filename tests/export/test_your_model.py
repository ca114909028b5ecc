"""The page on serving one's own model works as written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits_export import package

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-model.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, test_images):
    """Return a folder with what a reader has at hand: letters.npz and PyTorch's file."""
    some = test_images.take(slice(0, 2000))
    letters = some.take(np.flatnonzero(some.labels < 3))
    np.savez(tmp_path / "letters.npz", images=letters.images, labels=letters.labels)
    shutil.copy(ROOT / "tests" / "export" / "data" / "torch-dynamo.onnx", tmp_path / "torch.onnx")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return tmp_path


SMALL = f"""
from pathlib import Path
from digits_export import data
folder = Path({str(ROOT / "tests" / "data" / "mnist")!r})
test = data.Split(
    data.parse_images(data.read_idx_bytes(folder, "t10k-images-idx3-ubyte")),
    data.parse_labels(data.read_idx_bytes(folder, "t10k-labels-idx1-ubyte")),
)
small = data.Mnist(test.take(slice(0, 4000)), test.take(slice(4000, 5000)))
data.load = lambda _folder=None: small
"""
"""Stands for MNIST's 60,000 images, which tests don't have: the committed 10,000, for Keras and for the command."""


def _run(folder, code, *arguments):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SMALL + code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _python(folder, name):
    (block,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith(f"# {name}")]
    keras = "import keras\nkeras.datasets.mnist.load_data = lambda: ((small.train.images, small.train.labels), ())\n"
    _run(folder, ("" if name == "logistic.py" else keras) + block)


@pytest.fixture
def console(folder):
    """Return a function that runs a section's commands as they stand, and gives what each printed."""
    server, environment = None, os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(section):
        nonlocal server
        text = PAGE.split(f"## {section}")[1].split("\n## ")[0]
        printed = {}
        for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
            program, *arguments = shlex.split(line)
            if program == "python":
                _python(folder, *arguments)
            elif program == "digits-export":
                _run(folder, "from digits_export.__main__ import main\nmain()", *arguments)
            elif program == "digits-server":
                assert line.endswith(" &")
                free = {"DIGITS_SERVER_PORT": "0", "DIGITS_SERVER_METRICS_PORT": "0"}
                command = ["/bin/sh", "-c", f"exec {line.removesuffix(' &')}"]
                server = subprocess.Popen(
                    command, cwd=folder, env=environment | free, stdout=subprocess.PIPE, text=True
                )
                environment["DIGITS_CLIENT_SERVER"] = re.search(r"gRPC (\S+)", server.stdout.readline())[1]
            else:
                done = subprocess.run(
                    line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr
                printed[program] = done.stdout
        return printed

    yield run
    if server:
        with server.stdout:
            server.terminate()
            assert server.wait(30) == 0


def test_the_way_from_keras_to_an_answer_works_as_written(folder, console):
    """The fifteen lines train a network, and the commands below them make a measured package of it and serve it."""
    answers = console("From Keras")["digits"].splitlines()
    assert len(answers) == len(list((ROOT / "docs" / "samples").glob("*.png")))
    assert all("mine/1" in answer for answer in answers)
    _, properties = package.open_graph(folder / "models" / "mine" / "1")
    assert properties["training"]["test_accuracy"] > 0.8
    assert (folder / "models" / "mine" / "1" / "report" / "index.html").is_file()


def test_the_way_from_pytorch_works_as_written(folder, console):
    """The command imports a file as torch.onnx.export writes it."""
    console("From PyTorch")
    assert package.open_graph(folder / "models" / "torch" / "1")[1]["labels"] == list("0123456789")


def test_the_way_from_scikit_learn_works_as_written(folder, console):
    """The script writes an ONNX file, and the command makes a measured package of it."""
    console("From scikit-learn")
    _, properties = package.open_graph(folder / "models" / "logistic" / "1")
    assert properties["labels"] == list("abc")
    assert properties["training"]["test_accuracy"] > 0.9
