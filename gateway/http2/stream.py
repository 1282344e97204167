"""One request and its answer on an HTTP/2 connection: what is held of it, and what waits to be sent."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.http2 import frames as f
from gateway.http2.intake import WINDOW

if TYPE_CHECKING:
    from gateway.http2.connection import Connection


@dataclass(slots=True, frozen=True)
class Limits:
    """What one connection may do. Seconds and bytes."""

    max_streams: int
    held_limit: int
    """Bytes of bodies in memory from which only the oldest stream may send more than its first window."""
    header_timeout_s: float
    body_timeout_s: float
    idle_s: float


class Stream(ABC):
    """A request and its answer. Subclasses are told what comes; they answer with :meth:`send` and :meth:`finish`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.ended = False
        """The client has sent everything."""
        self.finished = False
        """So have we, or the stream was reset."""
        self.held = 0
        self.window_in = WINDOW
        self.window_out = connection.first_window_out
        self._pending: deque[memoryview] = deque()
        self._trailers: bytes | None = None
        self._drained: asyncio.Future[None] | None = None

    # --- what a subclass is told

    @abstractmethod
    def on_data(self, data: bytes) -> None:
        """A part of the body; see ``ended`` for whether it is the last."""

    @abstractmethod
    def on_end(self) -> None:
        """The client has sent everything; called once, after the last :meth:`on_data`."""

    @abstractmethod
    def on_reset(self) -> None:
        """The client has gone, or broke the rules: nothing can be answered."""

    @abstractmethod
    def check(self, now: float) -> None:
        """Called twice a second: is anything of it late?"""

    @abstractmethod
    def on_crowded(self) -> None:
        """All connections together hold too much: it cannot go on."""

    @property
    @abstractmethod
    def wants_more(self) -> bool:
        """Whether the client must send more before anything can be done with what is held."""

    # --- for subclasses

    def hold(self, size: int) -> None:
        """Count ``size`` bytes of the body that stay in memory."""
        self.held += size
        self.connection.intake.hold(self, size)

    def release(self) -> None:
        """Give back everything that was counted, and let the client send as much again."""
        if self.held:
            size, self.held = self.held, 0
            self.connection.intake.unhold(self, size)

    def send(self, head: bytes | None, data: bytes = b"", trailers: bytes | None = None) -> None:
        """Send a header block, a part of the body, and, with ``trailers``, the end of the answer."""
        if self.finished:
            return
        connection = self.connection
        parts: list[bytes] = []
        if head is not None:
            parts.append(connection.header_frames(self.number, head, end=False))
        size = len(data)
        if not self._pending and not connection.full and size <= min(
            self.window_out, connection.window_out, connection.frame_out
        ):  # fmt: skip
            if size:
                self.window_out -= size
                connection.window_out -= size
                parts.append(f.head.pack(size >> 8, size & 0xFF, f.DATA, 0, self.number))
                parts.append(data)
            if trailers is not None:
                parts.append(connection.header_frames(self.number, trailers, end=True))
                connection.write(b"".join(parts))
                self._close()
                return
            connection.write(b"".join(parts))
            return
        if parts:
            connection.write(parts[0])
        if size:
            self._pending.append(memoryview(data))
        self._trailers = trailers
        connection.blocked[self] = None
        self.flush()

    async def drained(self) -> None:
        """Wait until everything that was sent is on its way. Cancelled with the stream's task when it is reset."""
        while self._pending and not self.finished:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def flush(self) -> None:
        """Send as much of what waits as the windows allow."""
        connection = self.connection
        while self._pending and not connection.full:
            part = self._pending[0]
            size = min(len(part), self.window_out, connection.window_out, connection.frame_out)
            if size <= 0:
                return
            self.window_out -= size
            connection.window_out -= size
            connection.write(f.head.pack(size >> 8, size & 0xFF, f.DATA, 0, self.number) + part[:size])
            if size == len(part):
                self._pending.popleft()
            else:
                self._pending[0] = part[size:]
        if self._pending or connection.full:
            return
        connection.blocked.pop(self, None)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._trailers is not None:
            connection.write(connection.header_frames(self.number, self._trailers, end=True))
            self._close()

    def reset(self, code: int) -> None:
        """End the stream without an answer."""
        if not self.finished:
            self.connection.write(f.rst_stream(self.number, code))
            self.abandon()

    def _close(self) -> None:
        """Our side is said."""
        self.finished = True
        if not self.ended:  # nothing that still comes is of use
            self.ended = True
            self.connection.write(f.rst_stream(self.number, f.NO_ERROR))
        self.connection.forget(self)

    def abandon(self) -> None:
        """Let go of the stream: it was reset, or the connection is lost."""
        if self.finished:
            return
        self.finished = self.ended = True
        self._pending.clear()
        self.connection.forget(self)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self.on_reset()
