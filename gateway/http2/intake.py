"""What clients have sent and nobody has used yet: counted, and bounded by when their windows open again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.http2 import frames as f
from gateway.http2.frames import ConnectionFault

if TYPE_CHECKING:
    from gateway.http2.stream import Stream

WINDOW = 256 * 1024
"""Bytes of one stream's body that may be under way."""
CONNECTION_WINDOW = 16 * 2**20

RESETS = 1000
"""Streams that a client may reset at once; ``RESETS_PER_S`` more each second (CVE-2023-44487)."""
RESETS_PER_S = 200
LARGE_BLOCK = 50
"""What a header block that is too large counts, in resets: reading it is work."""


class Resets:
    """How many streams a client may still reset."""

    def __init__(self) -> None:
        self._left = float(RESETS)

    def spend(self, count: int = 1) -> None:
        """Take so many. Raises :class:`ConnectionFault`."""
        self._left -= count
        if self._left < 0:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "too many streams were reset or refused")

    def refill(self, seconds: float) -> None:
        """So much time has passed."""
        self._left = min(float(RESETS), self._left + RESETS_PER_S * seconds)


@dataclass(slots=True)
class Memory:
    """Bytes that all connections hold together."""

    limit: int
    used: int = 0


class Intake:
    """One connection's. A window opens again for who needs more to go on; over ``held_limit`` bytes for the oldest
    of them alone, and over the limit of all connections for nobody: such a stream is refused.
    """

    def __init__(self, write: Callable[[bytes], None], held_limit: int, memory: Memory) -> None:
        self._write, self._held_limit, self._memory = write, held_limit, memory
        self._window = CONNECTION_WINDOW
        self._unacknowledged = 0
        self._held = 0
        self._holding: dict[Stream, None] = {}

    @property
    def crowded(self) -> bool:
        """Whether all connections together hold more than they may."""
        return self._memory.used > self._memory.limit

    def received(self, size: int) -> None:
        """Count data of any stream. Raises :class:`ConnectionFault` over the connection's window."""
        self._window -= size
        if self._window < 0:
            raise ConnectionFault(f.FLOW_CONTROL_ERROR, "more data than the window allows")
        self._unacknowledged += size
        if self._unacknowledged >= CONNECTION_WINDOW // 4:
            self._write(f.window_update(0, self._unacknowledged))
            self._window += self._unacknowledged
            self._unacknowledged = 0

    def hold(self, stream: Stream, size: int) -> None:
        """Count bytes of ``stream`` that stay in memory."""
        self._held += size
        self._memory.used += size
        self._holding[stream] = None

    def unhold(self, stream: Stream, size: int) -> None:
        """They are gone; who had to wait may send."""
        self._held -= size
        self._memory.used -= size
        self._holding.pop(stream, None)
        if not stream.ended:
            self.extend(stream)
        for other in list(self._holding):
            if not other.ended:
                self.extend(other)

    def extend(self, stream: Stream) -> None:
        """Let ``stream`` send a further window, when half of the last is used and it may."""
        increment = WINDOW - stream.window_in
        if increment < WINDOW // 2:
            return
        if stream.held:
            if not stream.wants_more:
                return
            if self.crowded:
                stream.on_crowded()
                return
            if self._held > self._held_limit and stream is not next(iter(self._holding)):
                return
        stream.window_in = WINDOW
        self._write(f.window_update(stream.number, increment))
