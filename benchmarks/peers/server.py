"""A peer as a running process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

import benchmarks
from benchmarks.children import end, spawn
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.ways import Way

START_S = 180.0
STOP_S = 15.0


class PeerError(Exception):
    """The peer did not start; the message holds the last lines it printed."""


class PeerServer:
    """``with PeerServer("litserve", python, folder) as url``: ready when the block begins, gone after it."""

    def __init__(self, name: str, python: Path, folder: Path, way: Way | None = None) -> None:
        self._name = name
        self._way = way or PEERS[name].start()
        self._python = python
        self._folder = folder.absolute()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"peer-{name}-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process whose tree is the server."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> str:
        peer, scratch, port = PEERS[self._name], Path(self._scratch.name), _free_port()
        command = peer.command(self._python, self._folder, port, scratch, self._way)
        root = Path(benchmarks.__file__).parent.parent
        environment = {
            **os.environ, "PYTHONPATH": str(root), "PEER_MODEL": str(self._folder), **self._way.environment(),
        }  # fmt: skip
        log = scratch / "output.log"
        self._process = spawn(command, log, environment, scratch)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not _answers(url + peer.ready.format(model=self._folder.name)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").strip().splitlines()
                self.__exit__(None, None, None)
                raise PeerError(f"{peer.title} did not start: {' / '.join(lines[-3:])}")
            time.sleep(0.2)
        return url

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process, STOP_S)
            with contextlib.suppress(ProcessLookupError):  # what the server started and left
                os.killpg(process.pid, signal.SIGKILL)
        self._scratch.cleanup()


def _free_port() -> int:
    """A port of loopback that nobody listens on, nor on the two after it (MLServer takes three)."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                for number in (1, 2):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            except (OSError, OverflowError):
                continue
            return port


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
