"""What one connection sends: gathered for a turn of the event loop, held back when the client does not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MAX_QUEUED = 256 * 1024
MIN_DRAIN_BYTES = 64 * 1024
"""What a client must read in the time that it has, if anything waits for it."""


class Outlet:
    """Over one transport. ``on_room`` is called when more may be sent."""

    def __init__(self, transport: asyncio.Transport, on_room: Callable[[], None]) -> None:
        self._transport = transport
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._queued = 0
        self._paused = False
        self._written = 0
        self._progress = (0, self._loop.time())

    @property
    def full(self) -> bool:
        """Whether what is to be sent must wait: for the client to read, or for this turn's frames to be written."""
        return self._paused or self._queued > MAX_QUEUED

    @property
    def open(self) -> bool:
        """Whether anything can still come or go."""
        return not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send ``data`` with all else of this turn of the event loop: a call to the system costs more than a call."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._queued += len(data)

    def _flush(self) -> None:
        parts, self._parts, self._queued = self._parts, [], 0
        if parts and not self._transport.is_closing():
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._written += len(data)
            self._transport.write(data)
            self._on_room()

    def pause(self) -> None:
        """The client does not read: neither do we."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """It does again."""
        self._paused = False
        self._transport.resume_reading()
        self._on_room()

    def close(self) -> None:
        """Close when all is sent."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_stuck(self, now: float, *, waiting: bool, timeout_s: float) -> bool:
        """Whether the client has not read for too long; ``waiting``: there is more than the transport knows of."""
        unsent = self._transport.get_write_buffer_size()
        drained = self._written - unsent
        if not (unsent or waiting) or drained - self._progress[0] >= MIN_DRAIN_BYTES:
            self._progress = (drained, now)
        return now - self._progress[1] > timeout_s
