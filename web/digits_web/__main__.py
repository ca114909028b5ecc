"""The command `digits-web`: reads the settings and runs the gateway."""

from __future__ import annotations

import difflib
import logging.config
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import click
import uvicorn
from starlette.types import ASGIApp

from digits_client import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, Tls
from digits_web.app import Config, create_app

PREFIX = "DIGITS_WEB"
PEM = click.Path(exists=True, dir_okay=False)


class Command(click.Command):
    """A command that refuses environment variables that bear its prefix and are no setting: they are typing errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the environment, then parse as usual."""
        known = {param.envvar for param in self.params if isinstance(param.envvar, str)}
        for name in sorted(os.environ):
            if name.startswith(f"{PREFIX}_") and name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(sorted(known))}"
                raise click.UsageError(f"environment variable {name} is not a setting{hint}", ctx)
        return super().parse_args(ctx, args)


def setting(flag: str, **kwargs: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return an option that is an environment variable too, and names both in its help and errors."""
    variable = PREFIX + flag[1:].replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, show_default=True, **kwargs)


def _web_address(_: click.Context, __: click.Parameter, value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise click.BadParameter(f"{value!r}; allowed are http://... and https://..., or nothing")
    return value


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": ["asctime", "levelname", "name", "message"],
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"]},
}


class Gateway(uvicorn.Server):
    """A web server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        click.echo(self._ready)


@click.command(cls=Command, context_settings={"max_content_width": 120})
@setting("--host", default="127.0.0.1", help="Address to listen on.")
@setting("--port", type=click.IntRange(0, 65535), default=8080, help="Port of page and API; 0 takes a free one.")
@setting("--server", default=DEFAULT_SERVER, help="Where the Digits server is, host:port.")
@setting("--token", default="", help="Bearer token to send to it, where it wants one.")
@setting("--tls-ca", type=PEM, help="Encrypt the way to it, and trust the authorities in this PEM file.")
@setting("--tls-cert", type=PEM, help="The gateway's own certificate, PEM, where the server asks who calls.")
@setting("--tls-key", type=PEM, help="Its private key, PEM.")
@setting(
    "--metrics-url",
    default="http://127.0.0.1:9464/metrics",
    callback=_web_address,
    help="The server's metrics page, for the live figures; empty: none.",
)
@setting(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT_TIMEOUT_S,
    help="Seconds to wait for an answer of the server.",
)
@setting(
    "--max-upload-bytes",
    type=click.IntRange(1024, 2**30),
    default=Config.max_upload_bytes,
    help="Largest request body.",
)
@setting("--grace-s", type=click.IntRange(0), default=10, help="Seconds to finish requests after SIGTERM.")
@setting(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="Least severe level to log, as JSON lines on standard error; info logs each request.",
)
@click.version_option(package_name="digits-web")
def main(
    host: str,
    port: int,
    grace_s: int,
    log_level: str,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    **settings: Any,
) -> None:
    """Serve a page to draw digits on, and a JSON API, in front of a Digits server.

    Prints one line when it is ready. SIGTERM and SIGINT drain: requests in flight are finished, new ones refused. The
    Digits server may come and go.

    Exit status: 0 after a drain, 2 for a setting that can't work.
    """
    tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None
    config = Config(tls=tls, **settings)
    logging.config.dictConfig(LOGGING)  # before anything logs; uvicorn sets the levels
    traced = _tracing()  # before there is a client, which else makes no spans
    try:
        app = traced(create_app(config))
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise click.UsageError(f"--host {host} --port {port}: can't listen there: {error}") from error

    place = f"[{host}]" if family == socket.AF_INET6 else host
    gateway = Gateway(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=log_level,
            timeout_graceful_shutdown=grace_s,
            server_header=False,
            ws="none",
        ),
        f"digits-web ready: http://{place}:{listener.getsockname()[1]}, server {config.server}, pid {os.getpid()}",
    )
    # uvicorn drains on these and then raises them anew for whoever handled them before: that must not end us with -15.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    gateway.run(sockets=[listener])


def _tracing() -> Callable[[ASGIApp], ASGIApp]:
    """Trace, if OpenTelemetry's own variables say where to; return what gives an application spans, or does nothing."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    is_off = (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if is_off or not any(map(os.environ.get, names)):
        return lambda app: app
    try:
        from digits_web.tracing import set_up  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise click.UsageError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT: sending traces needs OpenTelemetry: digits-web[otel] ({error})"
        ) from error
    return set_up()


if __name__ == "__main__":
    main()
