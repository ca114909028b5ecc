"""The command `digits-server`: reads the settings, sets up logging, runs the server."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterator

import click

from digits_server import logs
from digits_server.addresses import Address
from digits_server.config import Config, SettingRefused, available_cpus
from digits_server.rpc import fronts

PREFIX = "DIGITS_SERVER"
SERVICE_LINK = re.compile(
    rf"{PREFIX}\w*?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""What Kubernetes adds to a container's environment for each Service whose name begins as ours does, and
`…_PORT=tcp://…` beside: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""


class Command(click.Command):
    """A command that refuses environment variables that bear its prefix and are no setting: they are typing errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the environment, then parse as usual."""
        known = {param.envvar for param in self.params if isinstance(param.envvar, str)}
        for name, value in sorted(os.environ.items()):
            if SERVICE_LINK.fullmatch(name) or re.fullmatch(
                rf"{PREFIX}\w*?_PORT=(tcp|udp|sctp)://.*", f"{name}={value}"
            ):
                del os.environ[name]
            elif name.startswith(f"{PREFIX}_") and name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(sorted(known))}"
                raise click.UsageError(f"environment variable {name} is not a setting{hint}", ctx)
        return super().parse_args(ctx, args)


def options() -> Iterator[click.Option]:
    """Yield an option for each setting, which is an environment variable too and is named so in errors."""
    for setting in dataclasses.fields(Config):
        yield click.Option(
            [f"--{setting.name.replace('_', '-')}", setting.name],
            **setting.metadata,
            is_flag=isinstance(setting.default, bool),
            envvar=f"{PREFIX}_{setting.name.upper()}",
            show_envvar=True,
            show_default=True,
        )


@click.pass_context
def serve(context: click.Context, /, **_: object) -> None:
    """Serve digit classifiers over gRPC.

    Prints one line when it is ready. SIGTERM and SIGINT drain: requests in flight are finished, new ones refused. A
    second signal ends the server at once. SIGHUP reloads certificates, tokens and models.

    Exit status: 0 after a drain, 1 if it was cut short or if workers die again and again, 2 for a setting that can't
    work.
    """
    config = Config(**context.params)
    if not config.workers:
        fit = 1 if Address(config.host, 0).path else max(1, available_cpus() // config.inference_threads)
        config = dataclasses.replace(config, workers=fit)
    logs.open_standard_files()
    logs.to_stderr(config.log_level)
    # grpc's core writes to standard error what it finds odd about clients, and not as JSON. They are told by statuses.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        sys.exit(_serve(config))
    except SettingRefused as error:
        raise click.UsageError(str(error)) from error


main = Command(
    "digits-server",
    params=list(options()),
    callback=serve,
    help=serve.__doc__,
    context_settings={"max_content_width": 120},
)
click.version_option(package_name="digits-server")(main)


def _serve(config: Config) -> int:
    # Only what is needed: onnxruntime takes long to import, and a supervisor has no use for it.
    front = fronts.choose(config)  # refuses what can't be, once and here
    if config.workers == 1 and front == "grpcio":
        from digits_server.workers.worker import serve_alone  # noqa: PLC0415

        return serve_alone(config)
    from digits_server.workers.supervisor import supervise  # noqa: PLC0415

    return supervise(config)


if __name__ == "__main__":
    main()
