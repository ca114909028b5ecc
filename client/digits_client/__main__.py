"""The command `digits`: classify files, list models, ask for health, watch the load."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from digits_client import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_S,
    DigitClient,
    DigitsError,
    ImageLike,
    Prediction,
    ServerUnavailable,
    Tls,
    _terminal,
    _watch,
)

PREFIX = "DIGITS_CLIENT"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Files of a folder that are taken for images; a file that is named is read whatever its name."""


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
        click.option("--token", default="", envvar=f"{PREFIX}_TOKEN", show_envvar=True, help="Bearer token to send."),
        click.option(
            "--tls-ca",
            type=click.Path(exists=True, dir_okay=False),
            envvar=f"{PREFIX}_TLS_CA",
            show_envvar=True,
            help="Encrypt, and trust the authorities in this PEM file.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def connected(
    server: str, timeout_s: float, token: str, tls_ca: str | None, model: str = "", version: str = ""
) -> Iterator[DigitClient]:
    """Yield a client; an error of ours ends the command with one line and exit status 1."""
    tls = Tls(ca=tls_ca) if tls_ca else None
    try:
        with DigitClient(server, timeout_s=timeout_s, model=model, version=version, tls=tls, token=token) as client:
            yield client
    except ServerUnavailable as error:
        raise click.ClickException(f"no server can be reached at {server}: {error.details}") from error
    except DigitsError as error:
        raise click.ClickException(str(error)) from error


@click.group(context_settings={"max_content_width": 120})
@click.version_option(package_name="digits-client")
def main() -> None:
    """Recognise handwritten digits with a Digits server.

    Exit status: 0 if all went well, 1 if a call or an image failed or the server is not ready, 2 for a wrong command
    line.

    Completion: put `eval "$(_DIGITS_COMPLETE=bash_source digits)"` in ~/.bashrc, or zsh_source in ~/.zshrc.
    """


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@server_options
@click.option("--model", default="", envvar=f"{PREFIX}_MODEL", show_envvar=True, help="Model; default: the server's.")
@click.option(
    "--model-version", default="", envvar=f"{PREFIX}_MODEL_VERSION", show_envvar=True, help="Default: latest."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of a table.")
@click.option(
    "--show", is_flag=True, help="In the table, draw each digit as the server gets it, with a bar for each class."
)
def classify(
    files: tuple[str, ...],
    server: str,
    timeout_s: float,
    token: str,
    tls_ca: str | None,
    model: str,
    model_version: str,
    as_json: bool,
    show: bool,
) -> None:
    """Say which digit each of FILES shows: images (PNG, JPEG, ...), folders of them, or - for one on stdin."""
    images = list(_images(files))
    if not images:
        raise click.ClickException(
            f"no images in {', '.join(files)}; files ending in {', '.join(sorted(SUFFIXES))} are"
        )
    width = max(len(name) for name, _ in images)
    is_flawless = True
    with connected(server, timeout_s, token, tls_ca, model, model_version) as client:
        results = client.stream((image for _, image in images), timeout_s=timeout_s * len(images))
        for (name, image), result in zip(images, results, strict=True):
            is_flawless &= isinstance(result, Prediction)
            click.echo(_terminal.as_json(name, result) if as_json else _terminal.line(name, result, width))
            if show and not as_json and isinstance(result, Prediction):
                click.echo(_terminal.drawing(image, result))
    sys.exit(0 if is_flawless else 1)


def _images(files: tuple[str, ...]) -> Iterator[tuple[str, ImageLike]]:
    """Yield the name of each image and what a client can read."""
    for file in files:
        if file == "-":
            yield file, sys.stdin.buffer.read()
        elif Path(file).is_dir():
            found = (path for path in Path(file).rglob("*") if path.suffix.lower() in SUFFIXES)
            yield from ((str(path), path) for path in sorted(found))
        else:
            yield file, file


@main.command()
@server_options
def models(server: str, timeout_s: float, token: str, tls_ca: str | None) -> None:
    """List the models that the server knows."""
    with connected(server, timeout_s, token, tls_ca) as client:
        for model in client.models():
            line = f"{model.name}/{model.version}  {model.state}{', default' if model.is_default else ''}"
            if model.is_serving:
                line += f"  test accuracy {model.test_accuracy:.2%}, batching helps {model.batching_gain:.1f}x: "
                line += ", ".join(f"{size} in {seconds * 1e6:,.0f} us" for size, seconds in model.batch_costs.items())
            click.echo(f"{line}  ({model.reason})" if model.reason else line)


@main.command()
@server_options
def health(server: str, timeout_s: float, token: str, tls_ca: str | None) -> None:
    """Say whether the server is ready; exit status 1 if not."""
    with connected(server, timeout_s, token, tls_ca) as client:
        ready = client.health()
    click.echo("ready" if ready else "not ready")
    sys.exit(0 if ready else 1)


@main.command()
@click.option(
    "--metrics",
    default="http://127.0.0.1:9464/metrics",
    envvar=f"{PREFIX}_METRICS",
    show_envvar=True,
    show_default=True,
    help="The server's metrics page.",
)
@click.option("--every-s", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--count", type=click.IntRange(1), help="Lines to print; default: until Ctrl-C.")
def watch(metrics: str, every_s: float, count: int | None) -> None:
    """Print a line every second: calls, failures, and how long calls take in the server."""
    try:
        before, began = _watch.look(_watch.fetch(metrics)), time.monotonic()
        for _ in itertools.repeat(None) if count is None else itertools.repeat(None, count):
            time.sleep(every_s)
            after, now = _watch.look(_watch.fetch(metrics)), time.monotonic()
            interval = _watch.between(before, after, now - began)
            before, began = after, now
            click.echo(
                f"{interval.calls_per_s:9.1f} req/s  {interval.failures_per_s:7.1f} failed/s  "
                f"p50 {interval.p50_s * 1000:8.3f} ms  p99 {interval.p99_s * 1000:8.3f} ms"
            )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"no metrics can be had from {metrics}: {error}") from error
    except KeyboardInterrupt:
        click.echo()


if __name__ == "__main__":
    main()
