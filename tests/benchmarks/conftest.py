"""Servers for the load generator to measure."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

StartServer = Callable[..., str]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """``start_server(before_s, pause_s)`` -> URL of a server that echoes the last 256 bytes of each body."""
    with contextlib.ExitStack() as stack:

        def start(before_s: float = 0.0, pause_s: float = 0.0) -> str:
            script = Path(__file__).with_name("pause_server.py")
            process = subprocess.Popen(
                [sys.executable, str(script), str(before_s), str(pause_s)], stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, process)
            assert process.stdout is not None
            return f"http://127.0.0.1:{process.stdout.readline().strip()}"

        yield start


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
