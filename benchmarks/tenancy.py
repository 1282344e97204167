"""Whether a tenant that sends too much harms the others."""

from __future__ import annotations

import msgspec
import numpy as np

from benchmarks.recording import Latency, Outcome, Recording, histogram_of
from benchmarks.suite import Slo

HARM = 2.0
"""How many times longer the others' tail may be beside a hot key, if it leaves their objective."""
SERVED = 0.99
"""Share of the others' requests that must be answered."""


class Tenant(msgspec.Struct, frozen=True):
    """What one key got."""

    latency: Latency
    requests_per_s: float
    goodput: float
    """Right answers a second within the objective."""
    shed: int
    faults: int


class Fairness(msgspec.Struct, frozen=True):
    """The other tenants' tail beside the hot key, and without it at the same moments."""

    percentile: str
    alone_ms: float | None
    beside_ms: float | None
    answered: float
    """Share of the others' requests that were answered rightly beside the hot key."""
    isolated: bool

    def __str__(self) -> str:
        if self.beside_ms is None or self.alone_ms is None:
            return "too few requests of the other tenants to judge"
        return (
            f"the other tenants' {self.percentile} is {self.beside_ms:.3g} ms beside the hot key, "
            f"{self.alone_ms:.3g} ms alone; {self.answered:.1%} of their requests were answered: "
            f"{'isolated' if self.isolated else 'NOT isolated'}"
        )


def tenant_of(recording: Recording, number: int, duration_s: float, slo: Slo) -> Tenant:
    """The part of tenant ``number``."""
    mine = np.asarray(recording.tenant) == number
    latencies = (np.asarray(recording.done) - np.asarray(recording.intended)) // 1000
    right = recording.mask(Outcome.OK) & mine
    return Tenant(
        Latency.of(histogram_of(latencies[recording.mask() & mine])),
        float(np.count_nonzero(mine)) / duration_s,
        float(np.count_nonzero(latencies[right] <= slo.ms * 1000)) / duration_s,
        int(np.count_nonzero(recording.mask(Outcome.SHED) & mine)),
        int(np.count_nonzero(recording.mask(Outcome.WRONG, Outcome.ERROR, Outcome.TIMEOUT) & mine)),
    )


def fairness(alone: Recording, beside: Recording, slo: Slo) -> Fairness:
    """``alone`` holds the other tenants only; in ``beside`` the hot key is tenant 0.

    They are isolated if nearly all their requests are answered and their tail is within the objective or not
    much longer than alone. The tail is the p99 where samples suffice, else the p95.
    """
    others = np.asarray(beside.tenant) > 0
    latencies = ((np.asarray(beside.done) - np.asarray(beside.intended)) // 1000)[others & beside.mask()]
    before, after = (Latency.of(histogram_of(values)).percentiles for values in (alone.latencies_us(), latencies))
    name = "p99" if before["p99"] is not None and after["p99"] is not None else "p95"
    alone_ms, beside_ms = before[name], after[name]
    right = np.count_nonzero(others & beside.mask(Outcome.OK)) / max(1, np.count_nonzero(others))
    near = alone_ms is not None and beside_ms is not None and beside_ms <= max(slo.ms, HARM * alone_ms)
    return Fairness(name, alone_ms, beside_ms, float(right), bool(near and right >= SERVED))
