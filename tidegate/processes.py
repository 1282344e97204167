"""Child processes that do not outlive the command: their start, their logs, their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class ChildProcess:
    """A program of ours in a process group of its own, its output in a log file, or where ours goes."""

    def __init__(
        self, name: str, arguments: Sequence[str], log_file: Path | None, environment: Mapping[str, str]
    ) -> None:
        """Start ``python -m arguments…``; it gets SIGTERM when this process dies, however it dies."""
        self.name = name
        self.log_file = log_file
        if log_file is not None:
            log_file.parent.mkdir(parents=True, exist_ok=True)
        libc = ctypes.CDLL(None)

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with log_file.open("ab") if log_file else contextlib.nullcontext() as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one call into libc; no thread of ours holds a lock
            )
        # Popen.poll() in the main thread could be interrupted by Ctrl-C with its lock held, for good.
        self._ended = threading.Event()
        threading.Thread(target=self._reap, name=f"reap-{name}", daemon=True).start()

    def _reap(self) -> None:
        self._process.wait()
        self._ended.set()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self._ended.wait()
        return int(self._process.returncode)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def last_line(self) -> str:
        """The last line of its log that says something."""
        if self.log_file is None:
            return "it wrote to the terminal"
        lines = [line for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it wrote nothing"

    def limit_log(self, max_bytes: int) -> None:
        """Begin its log anew if it has grown over ``max_bytes``; what it held is kept as ``….log.1``.

        The process goes on writing to the same file, which it has opened to append.
        """
        if self.log_file is not None and self.log_file.stat().st_size > max_bytes:
            shutil.copyfile(self.log_file, self.log_file.with_suffix(".log.1"))
            os.truncate(self.log_file, 0)

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for its whole group after ``grace_s``. Idempotent."""
        if self.running:
            self._process.terminate()
            if not self._ended.wait(grace_s):
                os.killpg(self._process.pid, signal.SIGKILL)
                self._ended.wait()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[int]:
    """Listen on ``port`` (0: a free one) for as long as the block lasts; the port. Raises :class:`OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to listen on
        probe.bind((host, port))
        probe.listen(1)
        yield int(probe.getsockname()[1])


def free_port(host: str) -> int:
    """A port that is free now."""
    with listening(host, 0) as port:
        return port
