"""The books: what was billed for a model must equal what Triton inferred and answered from its cache.

The two are never read at one instant, so a difference is judged against what explains it: a call
completed since the last reading may not be counted by Triton yet (it counts after it has answered),
and a call in flight, failed or given up by its client may have been. Within a window the rows that
Triton counted must therefore lie between the rows of calls completed before the last reading and
the rows of all calls accepted. A window closes whenever nothing is in flight; rows of failed calls
may still be counted for a while after (``_LATE``), and what is unexplained stays in ``imbalance``.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)


_LATE = 60
"""Readings within which Triton may still count a row of a call that had ended without an answer."""


@dataclass(slots=True)
class _Window:
    """Rows of one model since the window opened."""

    accepted: int = 0
    completed: int = 0
    other: int = 0
    """Of calls that failed or whose client went away."""
    completed_before: int = 0
    """``completed`` at the last reading."""
    counted: int = 0
    """By Triton, cache hits included."""
    difference: int = 0
    """What nothing explains: positive if Triton counted too much, negative if too little."""
    ambiguous: int = 0
    """In flight when the counters began anew: in them or not."""
    late: int = 0
    """Of earlier windows, not counted by Triton so far; it may still do so."""
    late_for: int = 0
    """Readings since ``late`` grew."""
    unexplained: int = 0
    """``difference`` of the windows before this one."""

    @property
    def inflight(self) -> int:
        return self.accepted - self.completed - self.other

    def compare(self) -> None:
        """Set ``difference``."""
        if self.counted > self.accepted + self.late:
            self.difference = self.counted - self.accepted - self.late
        else:
            self.difference = min(0, self.counted - self.completed_before + self.ambiguous)

    def reopen(self, *, ambiguous: bool = False) -> None:
        """Begin a new window with the calls in flight."""
        uncounted = self.accepted - self.inflight - self.counted
        if uncounted > 0:
            self.late, self.late_for = self.late + uncounted, 0
        else:
            self.late = max(0, self.late + uncounted)
        self.accepted = self.inflight
        self.ambiguous = self.accepted if ambiguous else 0
        self.completed = self.other = self.completed_before = self.counted = self.difference = 0

    def age(self) -> None:
        """Forget late rows that Triton will not count any more."""
        self.late_for += 1
        if self.late_for > _LATE:
            self.late = 0


class Balance:
    """Compares, model by model, continuously."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    @property
    def imbalance(self) -> dict[str, int]:
        """Unexplained rows by model: positive, Triton inferred what no call here asked for (another
        client, another gateway); negative, calls were billed that Triton never counted.
        """
        return {model: window.unexplained + window.difference for model, window in self._windows.items()}

    def accept(self, model: str, rows: int) -> None:
        """A call was reserved."""
        window = self._windows.get(model)
        if window is None:
            window = self._windows[model] = _Window()
        window.accepted += rows

    def end(self, model: str, reserved_rows: int, rows: int, *, completed: bool) -> None:
        """A call ended, having brought ``rows`` in the end."""
        window = self._windows[model]
        window.accepted += rows - reserved_rows
        if completed:
            window.completed += rows
        else:
            window.other += rows

    def restart(self, model: str) -> None:
        """Triton's counters of ``model`` began anew: what they lost cannot be compared."""
        if model in self._windows:
            self._windows[model].reopen(ambiguous=True)

    def count(self, model: str, rows: int) -> None:
        """Triton counted ``rows`` more."""
        self._windows.setdefault(model, _Window()).counted += rows

    def check(self) -> None:
        """Judge, after a complete reading of all servers."""
        for model, window in self._windows.items():
            quiet = not window.inflight and window.completed == window.completed_before
            window.compare()
            window.completed_before = window.completed
            window.age()
            if quiet:
                if window.difference:
                    log.error("ledger.imbalance", model=model, rows=window.difference)
                    window.unexplained += window.difference
                window.reopen()
