"""The least that an HTTP gateway in Python costs: a bare ASGI application on uvicorn, the gateway's own server.

It reads the request and answers with the tensor that came, without routing, key, limits, records or Triton.
No gateway on this server can pass more requests a second through one process, so this leg of
``tidegate bench overhead`` tells how much of the distance to Triton is Python's and how much is ours.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import end, spawn

WIDTH_BYTES = 256
_HEADER = (
    b'{"model_name":"identity","model_version":"1","outputs":[{"name":"OUTPUT","datatype":"FP32","shape":[1,64],'
    b'"parameters":{"binary_data_size":256}}]}'
)
_HEADERS = [
    (b"content-type", b"application/octet-stream"),
    (b"inference-header-content-length", str(len(_HEADER)).encode()),
    (b"content-length", str(len(_HEADER) + WIDTH_BYTES).encode()),
]


async def app(_scope: Any, receive: Any, send: Any) -> None:
    """ASGI: the last 256 bytes of the body come back as OUTPUT."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _HEADER + body[-WIDTH_BYTES:]})


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The application on a free port of loopback, in a process of its own: ``host:port``. Raises ``OSError``."""
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "benchmarks.floor:app", "--port", str(port), "--loop", "uvloop",
        "--http", "httptools", "--interface", "asgi3", "--no-access-log", "--no-server-header", "--no-date-header",
        "--lifespan", "off", "--log-level", "warning",
    ]  # fmt: skip
    process = spawn(command, log, os.environ)
    try:
        await_listening(port, deadline=time.monotonic() + 30)
        yield f"127.0.0.1:{port}"
    finally:
        end(process, 5.0)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def await_listening(port: int, deadline: float) -> None:
    """Return when somebody listens on ``port``. Raises ``OSError`` at ``deadline`` (monotonic clock)."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
