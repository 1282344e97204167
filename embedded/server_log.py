"""Reading what a server that has ended said last."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Sequence
from pathlib import Path

TAIL_LINES = 3
ERROR_LINE = re.compile(r"\S+Z E \d+ |error: |terminate called")


def log_lines(log_file: Path) -> list[str]:
    """The lines that are not empty; none when there is no log yet."""
    try:
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def telling_lines(lines: Sequence[str]) -> list[str]:
    """The last few errors in a log, or without one its last lines."""
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or list(lines))[-TAIL_LINES:]


def describe_status(status: int) -> str:
    """An exit code, or minus a signal, in words."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"exit code {status}"
