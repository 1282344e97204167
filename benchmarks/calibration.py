"""Is the load generator fast enough for what was measured? The answer of a server that does nothing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop, prepare
from benchmarks.measurement import Measurement
from benchmarks.null_server import serving
from benchmarks.openloop import OpenLoop
from benchmarks.pacing import poisson
from benchmarks.workloads import WORKLOADS

HEADROOM = 3.0
"""How many times the highest measured rate the generator must be able to send."""
USERS = 64
SECONDS = 3.0
RING = 1024


class Calibration(msgspec.Struct, frozen=True):
    """The generator before a null server on the same machine, over HTTP with the requests of ``identity``."""

    highest: float
    """The highest rate of the report: answers a second of a closed loop, or what an open loop offered."""
    capacity: float
    """Answers a second of a closed loop with 64 users, nothing between them and the null server."""
    cpu_us_per_request: float
    offered: float
    """Requests a second of the open loop: three times the highest rate."""
    issued: float
    lag_ms: dict[str, float]
    dropped: int
    verdict: str
    reasons: list[str]

    @property
    def headroom(self) -> float:
        """How many times the highest rate the generator can do."""
        return self.capacity / self.highest if self.highest else 0.0


def highest_rate(measurements: Sequence[Measurement]) -> float:
    """Of this generator's HTTP runs; a closed loop's rate is what was answered, an open loop's what was offered."""
    rates = [
        item.load.get("offered") or item.throughput
        for item in measurements
        if item.protocol == "http" and item.load.get("engine") != "locust"
    ]
    return float(max(rates, default=0.0))


async def calibrate(highest: float, seed: int, *, seconds: float = SECONDS) -> Calibration:
    """Load a null server as hard as a closed loop can, then by schedule at three times ``highest``.

    Raises ``OSError`` if the null server does not start.
    """
    workload = WORKLOADS["identity"](seed)
    with serving() as url:
        async with connect(url, None, limit=512) as client:
            ring = prepare(client, workload, RING)
            await client.warm(USERS)
            closed = await ClosedLoop(client, workload, USERS, ring=ring).run(seconds, seconds / 6)
            schedule = poisson(max(1.0, HEADROOM * highest), seconds, seed)
            run = await OpenLoop(client, workload, schedule, ring=ring).run(seconds, seconds / 6)
    reasons = list(run.reasons)
    if closed.throughput < HEADROOM * highest:
        reasons.append(
            f"it can do {closed.throughput / highest:.1f} times the highest rate, {HEADROOM:g} are asked for"
        )
    return Calibration(
        highest, closed.throughput, closed.cpu_s / max(1, len(closed.recording)) * 1e6, run.offered_rate,
        run.issued_rate, run.lag_ms, run.dropped, "INVALID" if reasons else "VALID", reasons,
    )  # fmt: skip


def sentence(found: Calibration) -> str:
    """What a report says about it."""
    text = (
        f"generator before a null server: {found.capacity:,.0f}/s, {found.headroom:.1f} times the highest rate of this "
        f"report ({found.highest:,.0f}/s); by schedule at {found.offered:,.0f}/s it lags {found.lag_ms['p99']:.2f} ms "
        f"(p99) and drops {found.dropped}: {found.verdict}"
    )
    return f"{text} ({'; '.join(found.reasons)})" if found.reasons else text


def mark(measurements: Sequence[Measurement], found: Calibration) -> None:
    """Judge every HTTP run that came nearer to the generator's own limit than :data:`HEADROOM`.

    An open loop is INVALID: what it offered may not have been what left. A closed loop's rate is a lower bound.
    """
    for item in measurements:
        rate = item.load.get("offered") or item.throughput
        if item.protocol != "http" or item.load.get("engine") == "locust" or rate * HEADROOM <= found.capacity:
            continue
        text = f"the generator can do {found.capacity / rate:.1f} times this rate"
        if item.load["model"] == "open":
            item.invalidate(f"{text}, {HEADROOM:g} are asked for")
        else:
            item.notes.append(f"{text}: a lower bound")
