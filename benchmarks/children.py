"""Servers as child processes that do not outlive the benchmark, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a process group of its own, its output in ``log``; it gets SIGTERM when we die (Linux)."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    with log.open("wb") as file:
        return subprocess.Popen(  # noqa: S603 - our own commands
            list(command), stdout=file, stderr=file, env=dict(environment), cwd=folder, start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one call, no locks
        )  # fmt: skip


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """SIGTERM to the process, time to end in order, then SIGKILL to its whole group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
