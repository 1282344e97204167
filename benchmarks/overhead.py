"""What the gateway costs: the same load on Triton and through the gateway, in turns, in one run.

Short legs alternate (A B, B A, …), so that both see the same disturbances; each round gives one
ratio, and the interval comes from resampling the rounds. Where the processes are known, each leg says what a
request costs each of them, so that a missed target can be looked up in the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from benchmarks.bootstrap import Interval, paired_difference, paired_ratio
from benchmarks.bootstrap import median as median_interval
from benchmarks.client import Client, connect
from benchmarks.closedloop import ClosedLoop, ClosedRun, Prepared, prepare
from benchmarks.observe import resources
from benchmarks.recording import Outcome, sample_floor
from benchmarks.workloads import Workload

RING = 1024


@dataclass(slots=True, frozen=True)
class Leg:
    """One way to the same model: ``url`` is ``http://…`` or ``grpc://…``."""

    name: str
    url: str
    key: str | None = None
    pid: int | None = None
    """Process whose processor time is to be divided by the answers."""
    roots: tuple[int, ...] = ()
    """Processes whose trees are the system that answers: Triton, its backends, gateways."""


@dataclass(slots=True)
class LegResult:
    """One leg at one concurrency, a value per round."""

    leg: Leg
    throughput: list[float]
    """Right answers a second."""
    median_ms: list[float]
    client_cpu_us: list[float]
    """The generator's processor time per request."""
    server_cpu_us: list[float]
    """Processor time of the leg's process per answer, all its threads; empty without a process."""
    p99_ms: list[float] = field(default_factory=list)
    """NaN for rounds with too few samples for it."""
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """Processor time of each component per answer; ``generator`` is the load's own."""
    max_ms: float = 0.0
    """The longest of all rounds: a stall shows here and in the throughput, never in the median."""
    faults: int = 0
    fault: str | None = None


@dataclass(slots=True)
class Comparison:
    """All legs at one concurrency; the first leg is what the others are divided by."""

    protocol: str
    concurrency: int
    legs: list[LegResult]

    def ratio(self, number: int) -> Interval:
        """Throughput of leg ``number`` over that of the first."""
        return paired_ratio(self.legs[number].throughput, self.legs[0].throughput)

    def added_ms(self, number: int) -> Interval:
        """Median latency of leg ``number`` less that of the first, milliseconds."""
        return paired_difference(self.legs[number].median_ms, self.legs[0].median_ms)

    def added_p99_ms(self, number: int) -> Interval:
        """The same of the 99th percentile; nothing where a round had too few samples."""
        return paired_difference(self.legs[number].p99_ms, self.legs[0].p99_ms)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "protocol": self.protocol,
            "concurrency": self.concurrency,
            "legs": [
                {
                    "name": leg.leg.name,
                    "throughput": median_interval(leg.throughput),
                    "median_ms": median_interval(leg.median_ms),
                    "client_cpu_us": float(np.median(leg.client_cpu_us)),
                    "server_cpu_us": median_interval(leg.server_cpu_us) if leg.server_cpu_us else None,
                    "p99_ms": median_interval(leg.p99_ms),
                    "cpu_us": {name: median_interval(values) for name, values in leg.cpu_us.items()},
                    "max_ms": leg.max_ms,
                    "faults": leg.faults,
                    "fault": leg.fault,
                    "ratio": None if number == 0 else self.ratio(number),
                    "added_median_ms": None if number == 0 else self.added_ms(number),
                    "added_p99_ms": None if number == 0 else self.added_p99_ms(number),
                    "rounds": leg.throughput,
                }
                for number, leg in enumerate(self.legs)
            ],
        }


async def compare(
    protocol: str,
    workload: Workload,
    legs: Sequence[Leg],
    concurrency: int,
    *,
    rounds: int,
    leg_s: float,
    on_leg: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure ``legs`` in turns. Raises ``OSError`` if one of them cannot be reached."""
    results = [LegResult(leg, [], [], [], []) for leg in legs]
    async with AsyncExitStack() as stack:
        clients: list[tuple[Client, list[Prepared]]] = []
        for leg in legs:
            client = await stack.enter_async_context(connect(leg.url, leg.key, limit=concurrency))
            clients.append((client, prepare(client, workload, RING)))
        for round_ in range(rounds):
            order = list(range(len(legs)))
            for number in order if round_ % 2 == 0 else reversed(order):
                client, ring = clients[number]
                loop = ClosedLoop(client, workload, concurrency, ring=ring, start=round_ * 997)
                before, parts = _processor_s(legs[number].pid), _components(legs[number].roots)
                run = await loop.run(leg_s, warmup_s=min(1.0, leg_s / 4))
                _spent(results[number], parts, _components(legs[number].roots), loop.answered)
                used = _processor_s(legs[number].pid) - before
                if used and loop.answered:
                    results[number].server_cpu_us.append(used / loop.answered * 1e6)
                _take(results[number], run)
                on_leg(f"{protocol} c={concurrency} {legs[number].name}: {run.throughput:,.0f}/s")
    return Comparison(protocol, concurrency, results)


def _processor_s(pid: int | None) -> float:
    """Seconds of processor time that a process has used; 0 for none."""
    if pid is None:
        return 0.0
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _components(roots: Sequence[int]) -> dict[str, float]:
    """Seconds of processor time by component, over the trees of ``roots``."""
    total: dict[str, float] = {}
    for root in roots:
        found = resources(root)
        for name, seconds in (found.cpu_s if found else {}).items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _spent(result: LegResult, before: dict[str, float], after: dict[str, float], answered: int) -> None:
    for name, seconds in after.items():
        if answered:
            spent = (seconds - before.get(name, 0.0)) / answered * 1e6
            result.cpu_us.setdefault(name, []).append(spent)


def _take(result: LegResult, run: ClosedRun) -> None:
    latencies = run.recording.latencies_us(Outcome.OK)
    result.throughput.append(run.throughput)
    result.median_ms.append(float(np.median(latencies)) / 1000 if len(latencies) else float("nan"))
    enough = len(latencies) >= sample_floor(99)
    result.p99_ms.append(float(np.percentile(latencies, 99)) / 1000 if enough else float("nan"))
    result.max_ms = max(result.max_ms, float(latencies.max()) / 1000 if len(latencies) else 0.0)
    used = run.cpu_s / max(1, len(run.recording)) * 1e6
    result.client_cpu_us.append(used)
    result.cpu_us.setdefault("generator", []).append(used)
    faulty = len(run.recording) - run.recording.count(Outcome.OK)
    result.faults += faulty
    if faulty and run.recording.faults:
        result.fault = run.recording.faults.most_common(1)[0][0]
    elif faulty:
        result.fault = f"statuses {run.recording.statuses()}"
