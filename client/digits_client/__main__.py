"""The command `digits`: classify and read files, list models, ask for health, watch the load."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

from digits_client import (
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_S,
    DigitClient,
    DigitsError,
    ImageLike,
    InvalidImage,
    Number,
    PermissionDenied,
    Prediction,
    ServerUnavailable,
    Tls,
    Unsupported,
    _terminal,
)
from digits_client._base import MAX_TIMEOUT_S

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Files of a folder that are taken for images; a file that is named is read whatever its name."""


class Refused(click.ClickException):
    """Something that the user can mend: one line, exit status 2."""

    exit_code = 2


class Digits(click.Group):
    """A group of commands that ends with a line, not with a stack, whatever is wrong with files and terminals."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Parse the command line and run a command."""
        if hasattr(sys.stdout, "reconfigure"):  # a name of a file that the terminal can't show must not end the list
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            if sys.stdout is None:
                raise OSError("standard output is closed")
            return super().main(*args, **extra)
        except OSError as error:  # but for broken pipes, which click ends on
            is_output = error.strerror and not error.filename
            with contextlib.suppress(OSError):
                click.echo(f"Error: {f'standard output: {error.strerror}' if is_output else error}", err=True)
            _discard(sys.stdout, sys.stderr)
            sys.exit(2)


def _discard(*streams: TextIO | None) -> None:
    """Let nothing that could not be written, as to a full disk, be tried again when Python ends."""
    for stream in filter(None, streams):
        with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


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
        option("--tls-cert", type=pem, help="Client certificate, PEM, for servers that require one (mTLS)."),
        option("--tls-ca", type=pem, help="Use TLS, and trust the CAs in this PEM file."),
        option("--token", default="", help="Bearer token to send."),
        option(
            "--timeout-s",
            type=click.FloatRange(0, min_open=True),
            default=DEFAULT_TIMEOUT_S,
            show_default=True,
            help="Seconds to wait for an answer.",
        ),
        option("--server", default=DEFAULT_SERVER, show_default=True, help="Address of the server, host:port."),
    ):
        command = add(command)
    return command


def model_options(command: CommandT) -> CommandT:
    """Add what says which model to ask: the arguments of `recognising`."""
    version = "Version of the model, without --model of the server's default; default: the latest."
    model = "Model; default: of those with the labels of the server's default, the most accurate."
    command = option("--model-version", "version", default="", help=version)(command)
    return option("--model", default="", help=model)(command)


@contextmanager
def connected(
    server: str, tls_ca: str | None, tls_cert: str | None, tls_key: str | None, **settings: Any
) -> Iterator[DigitClient]:
    """Yield a client; an error of ours ends the command with one line, and exit status 1 or, for arguments, 2."""
    tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    try:
        client = DigitClient(server, tls=tls, **settings)
    except ValueError as error:
        raise Refused(str(error)) from error
    try:
        with client:
            yield client
    except ServerUnavailable as error:
        raise click.ClickException(f"no server can be reached at {server}: {error.details}") from error
    except DigitsError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def recognising(model: str, version: str, **where: Any) -> Iterator[DigitClient]:
    """Yield a client, as `connected` does, of the model that was named or, if none was, of the most accurate."""
    if not model and not version:
        with connected(**where) as client:
            model = _most_accurate(client)
    with connected(model=model, version=version, **where) as client:
        yield client


def _most_accurate(client: DigitClient) -> str:
    """Return the most accurate of the models with the labels of the server's default; empty: that default."""
    try:
        latest = {model.name: model for model in client.models() if model.is_serving}  # they come sorted by version
    except (PermissionDenied, Unsupported):
        return ""
    labels = [model.labels for model in latest.values() if model.is_default]
    alike = [model for model in latest.values() if model.labels in labels]
    return max(alike, key=lambda model: (model.test_accuracy, model.is_default)).name if alike else ""


@click.group(cls=Digits, context_settings={"max_content_width": 120})
@click.version_option(package_name="digits-client")
def main() -> None:
    """Recognise handwritten digits with a Digits server.

    Exit status: 0 if all went well, 1 if a call or an image failed or the server is not ready, 2 for what you can fix:
    a wrong command line, missing files, an output that can't be written.

    Completion: put `eval "$(_DIGITS_COMPLETE=bash_source digits)"` in ~/.bashrc, or zsh_source in ~/.zshrc.
    """


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@server_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line instead of a table.")
@click.option(
    "--show", is_flag=True, help="In the table, draw each image as the server gets it, with bars for the top classes."
)
def classify(files: tuple[str, ...], as_json: bool, show: bool, timeout_s: float, **where: Any) -> None:
    """Say what each of FILES shows: images (PNG, JPEG, ...), folders of them, or - for one on stdin."""
    images = _images(files)
    width = _terminal.width(name for name, _ in images)
    is_flawless = True
    with recognising(timeout_s=timeout_s, **where) as client:
        total_s = min(timeout_s * len(images), MAX_TIMEOUT_S)
        results = client.stream((image for _, image in images), timeout_s=total_s)
        for (name, image), result in zip(images, results, strict=True):
            is_flawless &= isinstance(result, Prediction)
            click.echo(_terminal.as_json(name, result) if as_json else _terminal.line(name, result, width))
            if show and not as_json and isinstance(result, Prediction):
                click.echo(_terminal.drawing(image, result, sys.stdout.encoding))
    sys.exit(0 if is_flawless else 1)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@server_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with the position of each digit.")
def read(files: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Say which number each of FILES shows, of one or more digits: pictures, folders of them, or - for one on stdin."""
    images = _images(files)
    width = _terminal.width(name for name, _ in images)
    is_flawless = True
    with recognising(**where) as client:
        for name, image in images:
            try:
                result: Number | InvalidImage = client.read(image)
            except InvalidImage as error:
                result, is_flawless = error, False
            click.echo(_terminal.as_json(name, result) if as_json else _terminal.line(name, result, width))
    sys.exit(0 if is_flawless else 1)


def _images(files: tuple[str, ...]) -> list[tuple[str, ImageLike]]:
    """Return the name of each image and what a client can read.

    Raises:
        Refused: There are none.
    """
    images: list[tuple[str, ImageLike]] = []
    for file in files:
        if file == "-":
            if sys.stdin is None:
                raise Refused("-: standard input is closed")
            images.append((file, sys.stdin.buffer.read()))
        elif Path(file).is_dir():
            found = (path for path in Path(file).rglob("*") if path.suffix.lower() in SUFFIXES)
            images += ((str(path), path) for path in sorted(found) if not _is_hidden(path.relative_to(file)))
        else:
            images.append((file, file))
    if not images:
        raise Refused(f"no images in {', '.join(files)}; files ending in {', '.join(sorted(SUFFIXES))} are")
    return images


def _is_hidden(path: Path) -> bool:
    """Return whether a path below a folder is one that shells don't show, such as macOS' ._a.png beside a.png."""
    return any(part.startswith(".") for part in path.parts)


@main.command()
@server_options
@click.option("--verbose", is_flag=True, help="Also full reasons, labels, and how long batches take.")
def models(*, verbose: bool, **where: Any) -> None:
    """List the server's models, one per line."""
    with connected(**where) as client:
        known = client.models()
        width = _terminal.width(f"{model.name}/{model.version}" for model in known)
        for model in known:
            click.echo(_terminal.model_line(model, width) + (_terminal.model_details(model) if verbose else ""))


@main.command()
@server_options
def health(**where: Any) -> None:
    """Say whether the server is ready; exit status 1 if not."""
    with connected(**where) as client:
        ready = client.health()
    click.echo("ready" if ready else "not ready")
    sys.exit(0 if ready else 1)


@main.command()
@option("--metrics", default="http://127.0.0.1:9464/metrics", show_default=True, help="The server's metrics.")
@click.option(
    "--every-s", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Seconds between lines."
)
@click.option("--count", type=click.IntRange(1), help="Lines to print; default: until Ctrl-C.")
def watch(metrics: str, every_s: float, count: int | None) -> None:
    """Print a line every second: images, calls, failures, and how long calls take in the server.

    Images in streams count, such as those that `digits classify` sends; latency is that of calls only.
    """
    if not 0 < every_s <= MAX_TIMEOUT_S:  # NaN and infinity, which are in click's range
        raise Refused(f"--every-s: {every_s}; allowed are numbers above 0, in seconds, up to {MAX_TIMEOUT_S:.0f}")
    with contextlib.suppress(KeyboardInterrupt):
        for line in itertools.islice(_watched(metrics, every_s), count):
            click.echo(line)
        return
    click.echo()


def _watched(metrics: str, every_s: float) -> Iterator[str]:
    try:
        from digits_client.watch import lines  # noqa: PLC0415 - needs an optional dependency
    except ModuleNotFoundError as error:
        raise Refused(
            f"it needs the parser of prometheus-client: pip install 'digits-client[watch]' ({error})"
        ) from error
    try:
        yield from lines(metrics, every_s)
    except ValueError as error:
        raise Refused(f"--metrics: {error}") from error
    except OSError as error:
        raise click.ClickException(f"no metrics can be had from {metrics}: {error}") from error


if __name__ == "__main__":
    main()
