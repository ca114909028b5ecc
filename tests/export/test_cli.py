"""The command: every subcommand on a small real sample, and what it says when it can't."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from digits_export import __main__ as command
from digits_export import data


@pytest.fixture
def run(monkeypatch, sample, tmp_path):
    """Return a function that runs the command on the small sample, in a folder of its own, and gives its result."""
    monkeypatch.setattr(data, "load", lambda _folder: sample)
    # Threads can be set once a process, before TensorFlow starts; here it has long started.
    monkeypatch.setattr("digits_export.training.set_threads", lambda _count: None)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, **environment):
        environment = {
            "DIGITS_EXPORT_THREADS": "1",
            "DIGITS_EXPORT_OUT_OF_DISTRIBUTION": str(tmp_path / "none"),
        } | environment
        return CliRunner().invoke(command.cli, arguments, env=environment, catch_exceptions=False)

    return invoke


def test_train_makes_a_whole_package_and_shows_an_example(run, tmp_path):
    """One command trains, exports, verifies and reports, then draws a digit with the probabilities of its answer."""
    done = run("train", "--recipe", "ann-script", "--epochs", "1")
    assert done.exit_code == 0
    assert "test accuracy" in done.stdout
    assert "%%" in done.stdout
    files = {path.name for path in (tmp_path / "out" / "ann-script" / "1").iterdir()}
    assert files >= {"model.onnx", "model.keras", "model.h5", "bytes.onnx", "reference.npz", "report", "README.md"}


def test_export_evaluate_and_report_start_from_what_is_there(run, tmp_path):
    """A finished training is packaged again, and a package measured and reported again, for machines too."""
    first = json.loads(run("train", "--recipe", "ann-script", "--epochs", "1", "--json", "--out", "p").stdout)
    graph = tmp_path / "p" / "model.onnx"
    made = graph.read_bytes()
    graph.unlink()
    again = json.loads(run("export", "--recipe", "ann-script", "--json", "--out", "p").stdout)
    assert graph.read_bytes() == made
    assert again == first
    assert json.loads(run("evaluate", "p", "--json").stdout)["accuracy"] == first["accuracy"]
    assert "index.html" in run("report", "p").stdout
    told = run("evaluate", "p").stdout
    assert f"{first['accuracy']:.2%}" in told
    assert f"{first['calibration']['ece']:.2%}" in told
    # What is finished is not overwritten unless asked.
    refused = run("train", "--recipe", "ann-script", "--epochs", "1", "--out", "p")
    assert (refused.exit_code, "p holds a finished package: add --force" in refused.stderr) == (2, True)
    assert graph.read_bytes() == made


def test_export_without_a_training_says_so(run):
    """There is nothing to package where nothing was trained; the option is named, exit code 2."""
    done = run("export", "--recipe", "ann", "--out", "nowhere")
    assert (done.exit_code, "nowhere holds no finished training" in done.stderr) == (2, True)


def test_tune_writes_its_trials_as_table_and_plot(run, tmp_path):
    """A study leaves a table, a plot and its rows, the best first, and tells the best."""
    recipe = tmp_path / "small.toml"
    recipe.write_text('name = "s"\nsummary = "s"\n[network]\nlayers = []\n[fit]\nepochs = 1\n')
    best = json.loads(run("tune", "--recipe", str(recipe), "--trials", "3", "--out", "t", "--json").stdout)
    rows = json.loads((tmp_path / "t" / "trials.json").read_text())
    assert len(rows) == 3
    assert rows[0] == best
    assert best["validation"] == max(row["validation"] for row in rows)
    assert (tmp_path / "t" / "trials.md").read_text().count("\n") == 5
    assert (tmp_path / "t" / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_settings_come_from_the_environment_too(run):
    """Each option has its variable; a wrong value is named with what is allowed, exit code 2."""
    done = run("train", DIGITS_EXPORT_RECIPE="ann", DIGITS_EXPORT_THREADS="0")
    assert done.exit_code == 2
    assert "'--threads'" in done.stderr
    assert "0 is not in the range x>=1" in done.stderr


@pytest.mark.parametrize("subcommand", ["data", "train", "export", "import", "evaluate", "report", "tune"])
def test_help_names_every_option_with_its_variable(run, subcommand):
    """Help is complete: each option says what it does and which environment variable sets it."""
    text = " ".join(run(subcommand, "--help").stdout.split())
    for option in command.cli.commands[subcommand].params:
        if option.opts[0].startswith("--"):
            variable = "DIGITS_EXPORT_" + option.opts[0][2:].upper().replace("-", "_")
            assert variable in text.replace(" ", "")
            assert option.help


def test_a_damaged_out_of_distribution_set_is_named(run, small_package, tmp_path):
    """Images of clothes that are cut off end in a sentence with the file's name."""
    (tmp_path / "none").mkdir()
    path = tmp_path / "none" / "t10k-images-idx3-ubyte"
    path.write_bytes(b"\0\0\x08\x03")
    with pytest.raises(data.DataError, match=f"{path} is not an IDX file of 28 x 28 images"):
        run("evaluate", str(small_package))


def test_data_tells_what_it_has(run):
    """The data command says where the images are, how many, and their sums."""
    told = json.loads(run("data", "--json", "--data-dir", "d").stdout)
    assert (told["folder"], told["train"], told["test"]) == ("d", 6000, 1000)


@pytest.mark.parametrize(
    "arguments",
    [["train", "--recipe", "nope"], ["data"], ["evaluate", "."], ["report", "."], ["import", ".", "--name", "x"]],
)
def test_faults_that_a_user_can_mend_are_one_clear_line(tmp_path, arguments):
    """No traceback for a mistyped recipe, missing images or a wrong folder: one sentence and exit code 2."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PATH": "", "KERAS_HOME": str(tmp_path)}
    code = (
        "from digits_export import __main__, data\n"
        "def fail(): raise data.DataError('unreachable')\n"
        "data._from_keras = fail\n"
        "__main__.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("digits-export: ")
    assert "Traceback" not in done.stderr
