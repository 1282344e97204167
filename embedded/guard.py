"""The process between a launcher and its server: it lets nothing outlive either of them.

Run by path with ``python -I -S`` (the standard library alone, a few MiB), configured by one JSON argument::

    {"command": [...], "cwd": "...", "log": "...", "shm_prefix": "..."}

It starts the server in a session of its own and prints ``{"pid": N}``; when the server has ended and everything it
left is gone, ``{"status": S}`` (as :func:`os.waitstatus_to_exitcode`). It ends the server when told
``stop SECONDS`` on standard input, or when that closes, or when its parent is gone: first SIGTERM, after the seconds
SIGKILL to the whole process group. Then it waits for every orphan (it is their subreaper) and removes the server's
shared memory, which Triton leaves behind when it is killed.

A process of its own, because ``PR_SET_PDEATHSIG`` alone fires when the *thread* that forked ends, gives Triton no
time to finish, and says nothing to Triton's Python stubs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHM = Path("/dev/shm")  # noqa: S108  # where Linux keeps POSIX shared memory, not a temporary file
PREFIX = "tidegate-triton-"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.2
ORPHAN_GRACE_S = 0.5
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE)


def remove_shared_memory(prefix: str) -> None:
    """Unlink the shared memory regions whose name begins with ``prefix``."""
    for region in SHM.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            region.unlink()


def remove_stale_shared_memory() -> None:
    """Unlink what servers left whose guard was killed too: nobody holds the lock of their prefix any more."""
    for lock in SHM.glob(f"{PREFIX}*.lock"):
        with contextlib.suppress(OSError), lock.open("r") as handle:  # in use, another user's, or just removed
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_shared_memory(lock.name.removesuffix(".lock"))


class Guard:
    """Owns one server process. One thread, no signal handlers: it polls."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._parent = os.getppid()
        self._prefix: str = config["shm_prefix"]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._lock = (SHM / f"{self._prefix}.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        with Path(config["log"]).open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603  # the launcher's own command line
                config["command"],
                cwd=config["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._die_with_guard,  # noqa: PLW1509  # this process has one thread
            )

    def _die_with_guard(self) -> None:
        for number in IGNORED:  # what is ignored would stay ignored across exec
            signal.signal(number, signal.SIG_DFL)
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def run(self) -> None:
        """Watch until the server has ended, then leave nothing behind."""
        say({"pid": self._server.pid})
        deadline: float | None = None
        pending = b""
        inputs = [sys.stdin.fileno()]
        while self._server.poll() is None:
            readable, _, _ = select.select(inputs, [], [], POLL_S)
            if readable:
                chunk = os.read(inputs[0], 4096)
                pending += chunk
                if not chunk:
                    inputs = []
                    pending += b"stop 5\n"
            elif inputs and os.getppid() != self._parent:
                inputs = []
                pending += b"stop 5\n"
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                deadline = self._begin_stop(float(line.split()[1]), deadline)
            if deadline is not None and time.monotonic() > deadline:
                self._signal_group(signal.SIGKILL)
        status = self._server.returncode
        self._end_orphans()
        remove_shared_memory(self._prefix)
        say({"status": status})

    def _begin_stop(self, grace_s: float, deadline: float | None) -> float:
        wanted = time.monotonic() + grace_s
        if deadline is None:
            self._server.send_signal(signal.SIGTERM)
            return wanted
        return min(wanted, deadline)

    def _signal_group(self, number: signal.Signals) -> bool:
        """Signal the server's process group; false when nobody is left in it."""
        try:
            os.killpg(self._server.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _end_orphans(self) -> None:
        """Stubs notice that their server is gone; those that do not in time are killed. Reaps all of them."""
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while self._reap():
            if time.monotonic() > deadline:
                self._signal_group(signal.SIGKILL)
            time.sleep(0.02)

    @staticmethod
    def _reap() -> bool:
        """Reap ended children; true while living ones remain."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True


def say(message: dict[str, int]) -> None:
    """One JSON line to the launcher, if it still listens."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Run a guard as :mod:`embedded.guard` describes."""
    for number in IGNORED:
        # A terminal's Ctrl-C or a service manager's SIGTERM to the whole group reaches the launcher as well, which
        # stops us in order; if it dies instead, our standard input closes.
        signal.signal(number, signal.SIG_IGN)
    remove_stale_shared_memory()
    Guard(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    main()
