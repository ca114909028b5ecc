"""The command `digits-server`: reads the settings, sets up logging, runs the server."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from digits_server import logs
from digits_server.config import Config, SettingRefused, available_cpus
from digits_server.rpc import fronts

PREFIX = "DIGITS_SERVER"


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


def settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each setting, which is an environment variable too and is named so in errors."""
    for setting in reversed(fields(Config)):
        about = dict(setting.metadata)
        flag = about.pop("flag", f"--{setting.name.replace('_', '-')}")
        variable = f"{PREFIX}{flag[1:].replace('-', '_').upper()}"
        option = click.option(flag, setting.name, envvar=variable, show_envvar=True, show_default=True, **about)
        command = option(command)
    return command


@click.command(cls=Command, context_settings={"max_content_width": 120})
@settings
@click.version_option(package_name="digits-server")
def main(workers: int, **others: Any) -> None:
    """Serve digit classifiers over gRPC.

    Prints one line when it is ready. SIGTERM and SIGINT drain: requests in flight are finished, new ones refused.

    A second one ends the server at once. SIGHUP: look at certificates, tokens and models now.

    Exit status: 0 after a drain, 1 if it was cut short or if workers die again and again, 2 for a setting that can't
    work.
    """
    # grpc's core writes to standard error what it finds odd about clients, and not as JSON. They are told by statuses.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    config = Config(workers=workers or max(1, available_cpus() // others["inference_threads"]), **others)
    logs.to_stderr(config.log_level)

    try:
        sys.exit(_serve(config))
    except SettingRefused as error:
        raise click.UsageError(str(error)) from error


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
