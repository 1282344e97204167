"""How fast a model answers, measured as it goes: what tells how long a request that arrives now will wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_WEIGHT = 0.2
"""Of the newest measurement."""
_MAX_PACES = 1024


class Pace:
    """Of one model and shape. Numbers are exponentially weighted means; without any, no wait is foreseen."""

    __slots__ = ("_by_size", "_gap_s", "_inside", "_last_left")

    def __init__(self) -> None:
        self._by_size: dict[int, float] = {}
        """Seconds of a batch, by the bit length of its rows: 1, 2–3, 4–7, …"""
        self._gap_s = 0.0
        """Seconds between two answers while others were waiting for theirs."""
        self._inside = 0
        self._last_left: float | None = None

    # --- batches that the gateway forms

    def batch(self, rows: int, seconds: float) -> None:
        """A batch of ``rows`` was answered after ``seconds``."""
        size = rows.bit_length()
        known = self._by_size.get(size)
        self._by_size[size] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def wait(self, rows_ahead: int, max_rows: int, in_flight: int) -> float:
        """Seconds until a request would be answered that has ``rows_ahead`` before it, when ``in_flight`` batches
        of at most ``max_rows`` are on their way at any time.
        """
        full, rest = divmod(rows_ahead, max_rows)
        whole = self._seconds(max_rows) if full else 0.0
        own = self._seconds(min(max_rows, rest + 1))
        return (full * whole + own) / in_flight + own

    def batches(self, rows: int, max_rows: int, at_most: int) -> float:
        """Seconds of the batches that ``rows`` make, one after the other; of the first ``at_most`` of them."""
        return min(at_most, -(-rows // max_rows)) * self._seconds(min(rows, max_rows))

    def _seconds(self, rows: int) -> float:
        """Of a batch of ``rows``: as measured, or as the next smaller size that was; hope costs one late answer."""
        for size in range(rows.bit_length(), -1, -1):
            if size in self._by_size:
                return self._by_size[size]
        return 0.0

    # --- requests that queue in Triton

    def entered(self) -> None:
        """A request was sent."""
        self._inside += 1

    def left(self, now: float, *, answered: bool) -> None:
        """A request came back, or was given up; ``now`` on the monotonic clock."""
        self._inside -= 1
        if answered:
            if self._last_left is not None:
                gap = now - self._last_left
                self._gap_s = gap if not self._gap_s else self._gap_s + _WEIGHT * (gap - self._gap_s)
            self._last_left = now
        if not self._inside:
            self._last_left = None  # what comes next did not wait behind it

    def sojourn(self) -> float:
        """Seconds until the answer of a request that is sent now; 0 if nothing is before it."""
        return (self._inside + 1) * self._gap_s if self._inside else 0.0


class Paces:
    """Paces by what they are of; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._paces: OrderedDict[Hashable, Pace] = OrderedDict()

    def of(self, key: Hashable) -> Pace:
        """The pace of ``key``, a new one at first."""
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = Pace()
            if len(self._paces) > _MAX_PACES:
                self._paces.popitem(last=False)
        else:
            self._paces.move_to_end(key)
        return pace
