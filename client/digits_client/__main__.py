"""The command `digits`: classify files, list models, ask for health, watch the load."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

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
)
from digits_client import metrics as page

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Files of a folder that are taken for images; a file that is named is read whatever its name."""


CommandT = TypeVar("CommandT", bound=Callable[..., None])


def option(flag: str, *name: str, **settings: Any) -> Callable[[CommandT], CommandT]:
    """Declare an option that is an environment variable too, for all commands: --tls-ca, DIGITS_CLIENT_TLS_CA."""
    variable = f"DIGITS_CLIENT_{flag.removeprefix('--').replace('-', '_').upper()}"
    return click.option(flag, *name, envvar=variable, show_envvar=True, **settings)


def server_options(command: CommandT) -> CommandT:
    """Add what every command needs to find its server: the arguments of `connected`."""
    pem = click.Path(exists=True, dir_okay=False)
    for add in (  # the last is listed first
        option("--tls-key", type=pem, help="Its private key, PEM."),
        option("--tls-cert", type=pem, help="Own certificate, PEM, for servers that ask who calls."),
        option("--tls-ca", type=pem, help="Encrypt, and trust the authorities in this PEM file."),
        option("--token", default="", help="Bearer token to send."),
        option(
            "--timeout-s",
            type=click.FloatRange(0, min_open=True),
            default=DEFAULT_TIMEOUT_S,
            show_default=True,
            help="Seconds to wait for an answer.",
        ),
        option("--server", default=DEFAULT_SERVER, show_default=True, help="Where the server is, host:port."),
    ):
        command = add(command)
    return command


@contextmanager
def connected(
    server: str, tls_ca: str | None, tls_cert: str | None, tls_key: str | None, **settings: Any
) -> Iterator[DigitClient]:
    """Yield a client; an error of ours ends the command with one line and exit status 1."""
    tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    try:
        client = DigitClient(server, tls=tls, **settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        with client:
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
@option("--model", default="", help="Model; default: the server's.")
@option("--model-version", "version", default="", help="Default: latest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of a table.")
@click.option(
    "--show", is_flag=True, help="In the table, draw each digit as the server gets it, with a bar for each class."
)
def classify(files: tuple[str, ...], as_json: bool, show: bool, timeout_s: float, **where: Any) -> None:
    """Say which digit each of FILES shows: images (PNG, JPEG, ...), folders of them, or - for one on stdin."""
    images = list(_images(files))
    if not images:
        raise click.ClickException(
            f"no images in {', '.join(files)}; files ending in {', '.join(sorted(SUFFIXES))} are"
        )
    width = max(len(name) for name, _ in images)
    is_flawless = True
    with connected(timeout_s=timeout_s, **where) as client:
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
def models(**where: Any) -> None:
    """List the models that the server knows."""
    with connected(**where) as client:
        for model in client.models():
            line = f"{model.name}/{model.version}  {model.state}{', default' if model.is_default else ''}"
            if model.is_serving:
                line += f"  test accuracy {model.test_accuracy:.2%}, batching helps {model.batching_gain:.1f}x: "
                line += ", ".join(f"{size} in {seconds * 1e6:,.0f} us" for size, seconds in model.batch_costs.items())
            click.echo(f"{line}  ({model.reason})" if model.reason else line)


@main.command()
@server_options
def health(**where: Any) -> None:
    """Say whether the server is ready; exit status 1 if not."""
    with connected(**where) as client:
        ready = client.health()
    click.echo("ready" if ready else "not ready")
    sys.exit(0 if ready else 1)


@main.command()
@option("--metrics", default="http://127.0.0.1:9464/metrics", show_default=True, help="The server's metrics page.")
@click.option("--every-s", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--count", type=click.IntRange(1), help="Lines to print; default: until Ctrl-C.")
def watch(metrics: str, every_s: float, count: int | None) -> None:
    """Print a line every second: calls, failures, and how long calls take in the server; streams don't count."""
    try:
        before = page.fetch(metrics)
        for _ in itertools.repeat(None) if count is None else itertools.repeat(None, count):
            time.sleep(every_s)
            after = page.fetch(metrics)
            interval = page.between(before, after)
            before = after
            p50, p99 = ("-" if s is None else f"{s * 1000:.3f}" for s in (interval.p50_s, interval.p99_s))
            click.echo(
                f"{interval.calls_per_s:9.1f} req/s  {interval.failures_per_s:7.1f} failed/s  "
                f"p50 {p50:>8} ms  p99 {p99:>8} ms"
            )
    except ValueError as error:
        raise click.UsageError(f"--metrics: {error}") from error
    except OSError as error:
        raise click.ClickException(f"no metrics can be had from {metrics}: {error}") from error
    except KeyboardInterrupt:
        click.echo()


if __name__ == "__main__":
    main()
