"""The fastest answer that there is: what the load generator is calibrated against.

    python -m benchmarks.null_server          (prints its port)

Every POST gets the last 256 bytes of its body back, which is what ``identity`` answers. It parses no more
than the length, so that whatever limits a run against it is the generator.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.children import end, spawn

ECHO = 256
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n"
_LENGTH = b"content-length: "
START_S = 30.0


class Null(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        buffer = self._buffer + data if self._buffer else data
        while (head := buffer.find(b"\r\n\r\n")) >= 0:
            found = buffer[:head].lower().rfind(_LENGTH)
            size = int(buffer[found + len(_LENGTH) : head].split(b"\r", 1)[0]) if found >= 0 else 0
            total = head + 4 + size
            if len(buffer) < total:
                break
            body = buffer[max(head + 4, total - ECHO) : total]
            buffer = buffer[total:]
            if self._transport is not None:
                self._transport.write(_ANSWER % len(body) + body)
        self._buffer = buffer


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """The server in a process of its own: ``http://host:port``. Raises ``OSError`` if it does not start."""
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        log = Path(folder) / "null.log"
        process = spawn([sys.executable, "-m", "benchmarks.null_server"], log, os.environ)
        try:
            yield f"http://127.0.0.1:{_port(process, log)}"
        finally:
            end(process, 5.0)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_S
    while True:
        text = log.read_text()
        if text.endswith("\n") and text.strip().isdigit():
            return int(text)
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"the null server did not start: {text.strip()}")
        time.sleep(0.02)


if __name__ == "__main__":
    uvloop.run(_serve())
