"""The command `digits`: classify files, list models, ask for health."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from digits_client import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, DigitClient, DigitsError, Prediction, ServerUnavailable

PREFIX = "DIGITS_CLIENT"


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what every command needs to find its server."""
    for option in (
        click.option(
            "--timeout-s",
            type=click.FloatRange(0, min_open=True),
            default=DEFAULT_TIMEOUT_S,
            envvar=f"{PREFIX}_TIMEOUT_S",
            show_envvar=True,
            show_default=True,
            help="Seconds to wait for an answer.",
        ),
        click.option(
            "--server",
            default=DEFAULT_SERVER,
            envvar=f"{PREFIX}_SERVER",
            show_envvar=True,
            show_default=True,
            help="Where the server is, host:port.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def connected(server: str, timeout_s: float, model: str = "", version: str = "") -> Iterator[DigitClient]:
    """Yield a client; an error of ours ends the command with one line and exit status 1."""
    try:
        with DigitClient(server, timeout_s=timeout_s, model=model, version=version) as client:
            yield client
    except ServerUnavailable as error:
        raise click.ClickException(f"no server can be reached at {server}: {error.details}") from error
    except DigitsError as error:
        raise click.ClickException(str(error)) from error


@click.group(context_settings={"max_content_width": 120})
@click.version_option(package_name="digits-client")
def main() -> None:
    """Recognise handwritten digits with a Digits server.

    Exit status: 0 if all went well, 1 if a call or an image failed, 2 for a wrong command line.
    """


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@server_options
@click.option("--model", default="", envvar=f"{PREFIX}_MODEL", show_envvar=True, help="Model; default: the server's.")
@click.option(
    "--model-version", default="", envvar=f"{PREFIX}_MODEL_VERSION", show_envvar=True, help="Default: latest."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of a table.")
def classify(
    files: tuple[str, ...], server: str, timeout_s: float, model: str, model_version: str, as_json: bool
) -> None:
    """Say which digit each of FILES (PNG, JPEG, ...) shows."""
    with connected(server, timeout_s, model, model_version) as client:
        for file in files:
            show = _json if as_json else _line
            click.echo(show(file, client.classify(file)))


@main.command()
@server_options
def models(server: str, timeout_s: float) -> None:
    """List the models that the server knows."""
    with connected(server, timeout_s) as client:
        for model in client.models():
            state = "serving" if model.is_serving else f"refused: {model.reason}"
            default = ", default" if model.is_default else ""
            click.echo(
                f"{model.name}/{model.version}  {state}{default}  "
                f"test accuracy {model.test_accuracy:.2%}, batching helps {model.batching_gain:.1f}x"
            )


@main.command()
@server_options
def health(server: str, timeout_s: float) -> None:
    """Say whether the server is ready; exit status 1 if not."""
    with connected(server, timeout_s) as client:
        ready = client.health()
    click.echo("ready" if ready else "not ready")
    sys.exit(0 if ready else 1)


def _line(file: str, prediction: Prediction) -> str:
    remarks = "".join(f"  {flag.name}" for flag in prediction.quality)
    return (
        f"{file}: {prediction.digit}  {prediction.confidence:.1%}  ({prediction.model}/{prediction.version}){remarks}"
    )


def _json(file: str, prediction: Prediction) -> str:
    answer: dict[str, Any] = {
        "file": file,
        "digit": prediction.digit,
        "confidence": round(prediction.confidence, 6),
        "probabilities": [round(p, 6) for p in prediction.probabilities.tolist()],
        "quality": [flag.name for flag in prediction.quality],
        "model": prediction.model,
        "version": prediction.version,
    }
    return json.dumps(answer)


if __name__ == "__main__":
    main()
