"""The command `digits-web`: reads the settings and runs the gateway."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import signal
import socket
from collections.abc import Callable
from typing import Any

import click
import uvicorn
from pythonjsonlogger.json import JsonFormatter
from starlette.middleware import Middleware

from digits_client import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, Tls
from digits_web.app import Config, create_app

PREFIX = "DIGITS_WEB_"
NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}
PEM = click.Path(exists=True, dir_okay=False)
SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)\w*)=|\w+_PORT=\w+://")
"""What Kubernetes puts into the environment of every pod about a service named digits-web."""


class Command(click.Command):
    """A command that refuses environment variables that bear its prefix and are no setting: they are typing errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the environment, then parse as usual."""
        known = {param.envvar for param in self.params if isinstance(param.envvar, str)}
        for name, value in sorted(os.environ.items()):
            if name.startswith(PREFIX) and SERVICE_LINK.match(f"{name}={value}"):
                del os.environ[name]
            elif name.startswith(PREFIX) and name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(sorted(known))}"
                raise click.UsageError(f"environment variable {name} is not a setting{hint}", ctx)
        return super().parse_args(ctx, args)


class Gateway(uvicorn.Server):
    """A web server that says when it is ready."""

    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        with contextlib.suppress(OSError):  # a full disk, or nobody who reads: no reason not to serve
            click.echo(self.ready)


def setting(flag: str, **kwargs: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return an option that is an environment variable too, and names both in its help and errors."""
    variable = PREFIX + flag[2:].replace("-", "_").upper()
    return click.option(flag, envvar=variable, show_envvar=True, show_default=True, **kwargs)


def open_standard_streams() -> None:
    """Put the null device where standard input, output or error is closed: else a socket takes its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a name or an address, IPv6 with or without brackets; on `::`, for IPv4 too.

    Raises:
        OSError: The operating system refuses.
    """
    host = host.removeprefix("[").removesuffix("]")
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    is_dual = address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(address, family=family, backlog=512, dualstack_ipv6=is_dual)


def tracing() -> list[Middleware]:
    """Trace to the end of the process if OpenTelemetry's own variables say where to; return what makes the spans."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(map(os.environ.get, endpoints)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return []
    try:  # optional dependencies
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415
        from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise click.UsageError(f"{endpoints[0]}: sending traces needs the extra digits-web[otel] ({error})") from error

    def add_trace(record: logging.LogRecord) -> bool:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.trace_id, record.span_id = trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)
        return True

    os.environ.setdefault("OTEL_SERVICE_NAME", "digits-web")
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    GrpcAioInstrumentorClient().instrument()  # type: ignore[no-untyped-call]  # the calls of clients made from now on
    logging.getLogger().handlers[0].addFilter(add_trace)
    return [Middleware(OpenTelemetryMiddleware, excluded_urls="/healthz", exclude_spans=["receive", "send"])]


@click.command(cls=Command, context_settings={"max_content_width": 120})
@setting("--host", default="127.0.0.1", help="Address to listen on, IPv4 or IPv6.")
@setting("--port", type=click.IntRange(0, 65535), default=8080, help="Port of the page and API; 0 picks a free one.")
@setting("--server", default=DEFAULT_SERVER, help="Address of the Digits server, host:port.")
@setting("--token", default="", help="Bearer token to send to it, if it requires one.")
@setting("--tls-ca", type=PEM, help="Connect to it over TLS, and trust the CAs in this PEM file.")
@setting("--tls-cert", type=PEM, help="The gateway's own certificate, PEM, for servers that require one (mTLS).")
@setting("--tls-key", type=PEM, help="Its private key, PEM.")
@setting(
    "--metrics-url",
    default=Config.metrics_url,
    help="The server's metrics endpoint, for the live figures; empty: none.",
)
@setting(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULT_TIMEOUT_S,
    help="Seconds to wait for an answer from the server.",
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
    help="Minimum level to log, as JSON lines on standard error; info logs each request.",
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

    Exit status: 0 after a drain, 2 for an invalid setting.
    """
    open_standard_streams()
    config = Config(tls=Tls(tls_ca, tls_cert, tls_key) if tls_ca or tls_cert or tls_key else None, **settings)
    lines = logging.StreamHandler()
    lines.setFormatter(JsonFormatter("{asctime}{levelname}{name}{message}", style="{", rename_fields=NAMES))
    logging.basicConfig(handlers=[lines])  # before anything logs; uvicorn sets the levels
    try:
        app = create_app(config, tracing())
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    try:
        listener = listen(host, port)
    except OSError as error:
        raise click.UsageError(f"--host {host} --port {port}: can't listen there: {error.strerror}") from error

    address, port = listener.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
    gateway = Gateway(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=log_level,
            timeout_graceful_shutdown=grace_s,
            server_header=False,
            ws="none",
        )
    )
    gateway.ready = f"digits-web ready: {url}, server {config.server}, pid {os.getpid()}"
    # uvicorn drains on these and then raises them anew for whoever handled them before: that must not end us with -15.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    gateway.run(sockets=[listener])


if __name__ == "__main__":
    main()
