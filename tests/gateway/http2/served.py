"""An :class:`RpcServer` with small handlers on a thread of its own, and a client that writes frames by hand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import uvloop

from gateway.http2.rpc import Methods, RpcStream, StatusError
from gateway.http2.server import RpcServer
from gateway.http2.stream import Limits
from tests.live.hostile import h2

DEADLINE_S = 20.0
MAX_MESSAGE = 48 * 2**20
LIMITS = Limits(max_streams=8, held_limit=2 * MAX_MESSAGE, header_timeout_s=0.4, body_timeout_s=0.6, idle_s=60.0)
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32
Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""


class Served:
    """The server. ``began`` and ``cancelled`` count calls of the method ``Wait``.

    Callers say who they are in ``x-caller``: ``stranger`` is refused, ``guest`` is served and not known, ``late`` is
    known once ``found`` is set, and everybody else is known at once.
    """

    def __init__(self, limits: Limits = LIMITS, max_held_bytes: int = 2**30, max_connections: int = 64) -> None:
        self.began = self.cancelled = 0
        self.timeouts: list[float | None] = []
        self._limits, self._max_held, self._max_connections = limits, max_held_bytes, max_connections
        self._up = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self.server: RpcServer
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self.grace_s = 0.2

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._up.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # over already
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._found = asyncio.Event()
        bound = socket.create_server(("127.0.0.1", 0))
        bound.setblocking(False)
        self.address = f"127.0.0.1:{bound.getsockname()[1]}"
        unary = {"/t.T/Echo": self.echo, "/t.T/Fail": self.fail, "/t.T/Wait": self.wait, "/t.T/Break": self.broken}
        self.server = RpcServer(
            Methods(unary, {"/t.T/Double": self.double}, self.admit),
            self._limits,
            max_message_bytes=MAX_MESSAGE,
            max_held_bytes=self._max_held,
            max_connections=self._max_connections,
        )
        self.server.listen_on(bound)
        await self.server.start()
        self._up.set()
        await self._stop.wait()
        await self.server.stop(self.grace_s)

    def find(self) -> None:
        """Let callers in who are ``late``."""
        self._loop.call_soon_threadsafe(self._found.set)

    async def admit(self, stream: RpcStream) -> bool:
        caller = stream.head.metadata.get("x-caller", "")
        if caller == "late":
            await self._found.wait()
        if caller == "stranger":
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        stream.context = caller
        return caller != "guest"

    async def echo(self, stream: RpcStream, body: bytes) -> bytes:
        self.timeouts.append(stream.head.timeout_s)
        stream.trailers = [("x-said", stream.head.metadata.get("x-say", ""))]
        return body

    async def fail(self, _stream: RpcStream, body: bytes) -> bytes:
        raise StatusError(grpc.StatusCode.NOT_FOUND, body.decode(), [("x-more", "1")])

    async def broken(self, _stream: RpcStream, _body: bytes) -> bytes:
        raise ZeroDivisionError

    async def wait(self, _stream: RpcStream, _body: bytes) -> bytes:
        self.began += 1
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""

    async def double(self, _stream: RpcStream, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for message in messages:
            if message == b"stop":
                raise StatusError(grpc.StatusCode.ABORTED, "stopped")
            yield message
            yield message


class Peer:
    """A client that sends whatever it is told."""

    def __init__(self, address: str, *, greet: bool = True) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self._received = b""
        self.closed = False
        if greet:
            self.send(h2.PREFACE + h2.frame(h2.SETTINGS, 0))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frames(self) -> Iterator[Frame]:
        """Frames as they come, until the server closes."""
        self.socket.settimeout(DEADLINE_S)
        while True:
            while len(self._received) >= 9:
                size = int.from_bytes(self._received[:3], "big")
                if len(self._received) < 9 + size:
                    break
                kind, flags = self._received[3], self._received[4]
                stream = int.from_bytes(self._received[5:9], "big")
                payload, self._received = self._received[9 : 9 + size], self._received[9 + size :]
                yield kind, flags, stream, payload
            try:
                block = self.socket.recv(2**20)
            except ConnectionResetError:
                block = b""
            if not block:
                self.closed = True
                return
            self._received += block

    def until(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """All frames up to the first that is ``wanted``, or to the end of the connection."""
        found = []
        for frame in self.frames():
            found.append(frame)
            if wanted(frame):
                break
        return found

    def answer(self, stream: int = 1) -> tuple[bytes, bytes]:
        """All header bytes and all data of the answer on ``stream``."""
        head, data = b"", b""
        for kind, flags, number, payload in self.frames():
            if number != stream:
                continue
            head += payload if kind == h2.HEADERS else b""
            data += payload if kind == h2.DATA else b""
            if kind == h2.RST_STREAM or (flags & END_STREAM and kind in (h2.HEADERS, h2.DATA)):
                return head, data
        return head, data

    def goaway(self) -> int | None:
        """The error code with which the server ends the connection; None: it just closes."""
        code = None
        for kind, _, _, payload in self.frames():
            if kind == h2.GOAWAY:
                code = int.from_bytes(payload[4:8], "big")
        return code


def framed(message: bytes, compressed: int = 0) -> bytes:
    """A gRPC message."""
    return bytes([compressed]) + struct.pack(">I", len(message)) + message


def call(stream: int, message: bytes = b"hello", path: str = "/t.T/Echo", *more: tuple[str, str]) -> bytes:
    """A whole unary call."""
    return h2.frame(h2.HEADERS, stream, h2.headers(path, *more), END_HEADERS) + h2.frame(
        h2.DATA, stream, framed(message), END_STREAM
    )


def eventually(true: Callable[[], Any], what: str) -> None:
    """Poll until ``true()``."""
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)
