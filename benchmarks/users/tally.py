"""What one Locust process counted of one workload; tallies of several processes add up."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hdrh.histogram import HdrHistogram

from benchmarks.recording import Outcome, new_histogram

TALLIES = "tallies.json"
"""In the folder of ``--hdr-out``: the tallies by workload, and processor seconds by process."""
HISTOGRAMS = ("right", "ended", "shed")
"""Right answers; right and wrong answers and timeouts, as a report's latency has them; refusals."""
COUNTERS = ("outcomes", "statuses", "faults", "seconds", "totals")
"""By outcome, status and text; answers by second of the window; bytes, requests begun and finished, and 2xx of the
whole run."""


def three_digits(milliseconds: float) -> float:
    """A response time with three significant digits, in place of Locust's two (documented hook)."""
    if milliseconds <= 0:
        return 0
    return round(milliseconds, 2 - math.floor(math.log10(milliseconds)))


class Tally:
    """Histograms are in microseconds."""

    def __init__(self) -> None:
        self.histograms: dict[str, HdrHistogram] = {name: new_histogram() for name in HISTOGRAMS}
        self.counters: dict[str, Counter[str]] = {name: Counter() for name in COUNTERS}

    def ended(self, outcome: Outcome, status: int, fault: str | None, microseconds: int, size: int) -> None:
        """One request of the measured window, and how long it took."""
        self.counters["outcomes"][outcome.name.lower()] += 1
        self.counters["statuses"][str(max(0, status))] += 1
        self.counters["totals"]["bytes_in"] += size
        if fault is not None:
            self.counters["faults"][fault] += 1
        names = {
            Outcome.OK: ("right", "ended"), Outcome.WRONG: ("ended",), Outcome.TIMEOUT: ("ended",),
            Outcome.SHED: ("shed",),
        }  # fmt: skip
        for name in names.get(outcome, ()):
            self.histograms[name].record_value(max(1, microseconds))

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for the master and for JSON."""
        return {
            "histograms": {name: histogram.encode().decode() for name, histogram in self.histograms.items()},
            "counters": {name: dict(counter) for name, counter in self.counters.items()},
        }

    def add(self, wire: dict[str, Any]) -> None:
        """Add what another process sent."""
        for name, encoded in wire["histograms"].items():
            self.histograms[name].decode_and_add(encoded.encode())
        for name, counts in wire["counters"].items():
            self.counters[name].update(counts)
