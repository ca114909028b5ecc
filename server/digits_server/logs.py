"""Log lines as JSON on standard error."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter


def to_stderr(level: str) -> None:
    """Let all loggers write there what is at least as severe as `level`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            ["asctime", "levelname", "name", "process", "message"],
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"},
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
