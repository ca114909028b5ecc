"""The command `digits-server`: reads the settings, sets up logging, runs the server."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from digits_server import logs
from digits_server.config import Config, SettingRefused, available_cpus

PREFIX = "DIGITS_SERVER"


class Workers(click.ParamType[int]):
    """A number of processes, or `auto`, which is 0."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return 0 if value == "auto" else click.IntRange(1, 256).convert(value, param, ctx)


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


PORT = click.IntRange(0, 65535)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command, context_settings={"max_content_width": 120})
@setting("--host", default=Config.host, help="Address to listen on.")
@setting("--port", type=PORT, default=Config.port, help="Port of the gRPC services; 0 takes a free one.")
@setting("--metrics-host", default=Config.metrics_host, help="Address of /metrics, /healthz and /readyz.")
@setting("--metrics-port", type=PORT, default=Config.metrics_port, help="Their port; 0 takes a free one.")
@setting(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Config.models,
    help="Folder of model packages, <name>/<version>/.",
)
@setting("--default-model", default=Config.default_model, help="Model for requests that name none.")
@setting(
    "--workers",
    type=Workers(),
    default="auto",
    help="Processes that share the port; auto: as many as there are CPUs for their inference threads.",
)
@setting(
    "--transport",
    type=click.Choice(["auto", "grpcio", "native"]),
    default=Config.transport,
    help="What carries RPCs: grpcio, or native (pygrpc-native: several times faster, an extra); auto: grpcio.",
)
@setting(
    "--max-batch-size",
    type=click.IntRange(1, 65536),
    default=None,
    help="Most images run at once.  [default: measured at load, where images/s stop growing]",
)
@setting(
    "--max-wait-ms",
    type=click.FloatRange(0, 10_000),
    default=Config.max_wait_s * 1000,
    help="How long a first image may wait for company; 0: a lone request runs at once.",
)
@setting("--max-queue", type=click.IntRange(1), default=Config.max_queue, help="Most images waiting for one model.")
@setting("--max-rows", type=click.IntRange(1), default=Config.max_rows, help="Most images of one request.")
@setting(
    "--max-message-bytes",
    type=click.IntRange(1024, 2**31 - 1),
    default=Config.max_message_bytes,
    help="Largest request or answer.",
)
@setting(
    "--max-metadata-bytes",
    type=click.IntRange(1024, 1024**2),
    default=Config.max_metadata_bytes,
    help="Most metadata of a call.",
)
@setting(
    "--max-streams",
    type=click.IntRange(1, 65536),
    default=Config.max_streams,
    help="Most calls at once on a connection.",
)
@setting(
    "--max-connections",
    type=click.IntRange(1, 2**31 - 1),
    default=None,
    help="Most connections at once.  [default: 1000; native has no limit]",
)
@setting(
    "--max-connection-age-s",
    type=click.FloatRange(1, 10**6),
    default=None,
    help="How long a connection lasts before its client must connect anew.  [default: 300; native has no limit]",
)
@setting(
    "--max-idle-s",
    type=click.FloatRange(0.1, 10**6),
    default=None,
    help="How long a connection may be without calls.  [default: as long as it likes]",
)
@setting(
    "--min-ping-interval-s",
    type=click.FloatRange(0.001, 10**6),
    default=None,
    help="Who pings more often is disconnected.  [default: 0.5; native does not mind]",
)
@setting(
    "--channelz", is_flag=True, help="Serve grpc.channelz.v1: which connections there are, and what goes over them."
)
@setting("--tls-cert", type=FILE, default=None, help="Certificate chain, PEM: serve TLS. Read again when it changes.")
@setting("--tls-key", type=FILE, default=None, help="Its private key, PEM.")
@setting("--tls-client-ca", type=FILE, default=None, help="Clients must show a certificate of these authorities, PEM.")
@setting("--token-file", type=FILE, default=None, help="Bearer tokens and what they allow, TOML: see docs/security.md.")
@setting(
    "--allow-plain-tokens",
    is_flag=True,
    help="Take tokens over plain text from other machines, where something else encrypts.",
)
@setting(
    "--inference-threads",
    type=click.IntRange(1, available_cpus()),
    default=Config.inference_threads,
    help="Threads of one onnxruntime run, at most the CPUs that affinity and cgroup allow.",
)
@setting(
    "--reload-s",
    type=click.FloatRange(0),
    default=Config.reload_s,
    help="Time between looks at the models folder; 0: only at SIGHUP.",
)
@setting(
    "--strict-readiness",
    is_flag=True,
    help="Become ready only when every package in the folder is good; without, serve those that are, or end.",
)
@setting(
    "--shadow", is_flag=True, help="Let a new version answer a copy of live requests first, and show that it is good."
)
@setting("--shadow-images", type=click.IntRange(1), default=Config.shadow_images, help="Images to judge it by.")
@setting(
    "--shadow-agreement",
    type=click.FloatRange(0, 1),
    default=Config.shadow_agreement,
    help="Least share of them for which it must give the digit that the version before it gives.",
)
@setting(
    "--shadow-cost",
    type=click.FloatRange(0, min_open=True),
    default=Config.shadow_cost,
    help="Most CPU time it may take, over that of the version before it.",
)
@setting("--grace-s", type=click.FloatRange(0), default=Config.grace_s, help="Time to finish requests after SIGTERM.")
@setting(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default=Config.log_level,
    help="Least severe level to log, as JSON lines on standard error.",
)
@setting(
    "--access-log-sample",
    type=click.FloatRange(0, 1),
    default=Config.access_log_sample,
    help="Share of the calls that get a line in the log.",
)
@click.version_option(package_name="digits-server")
def main(max_wait_ms: float, **settings: Any) -> None:
    """Serve digit classifiers over gRPC.

    Prints one line when it is ready. SIGTERM and SIGINT drain: requests in flight are finished, new ones refused.

    A second one ends the server at once. SIGHUP: look at certificates, tokens and models now.

    Exit status: 0 after a drain, 1 if it was cut short or if workers die again and again, 2 for a setting that can't
    work.
    """
    # grpc's core writes to standard error what it finds odd about clients, and not as JSON. They are told by statuses.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    workers = settings.pop("workers") or max(1, available_cpus() // settings["inference_threads"])
    config = Config(max_wait_s=max_wait_ms / 1000, workers=workers, **settings)
    logs.to_stderr(config.log_level)

    try:
        sys.exit(_serve(config))
    except SettingRefused as error:
        raise click.UsageError(str(error)) from error


def _serve(config: Config) -> int:
    # Only what is needed: onnxruntime takes long to import, and a supervisor has no use for it.
    if config.workers == 1:
        from digits_server.worker import serve_alone  # noqa: PLC0415

        return serve_alone(config)
    from digits_server.supervisor import supervise  # noqa: PLC0415

    return supervise(config)


if __name__ == "__main__":
    main()
