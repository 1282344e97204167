"""One measured point of a scenario, with everything the report says about it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from benchmarks.bootstrap import Interval
from benchmarks.closedloop import ClosedRun
from benchmarks.observe import Resources, Statistics
from benchmarks.openloop import OpenRun
from benchmarks.recording import Latency, Outcome, Recording, histogram_of
from benchmarks.suite import Slo

WINDOWS = 6
BUSY_GENERATOR = 0.8
"""Share of a core beyond which a closed loop measures its own generator."""
STEADY = 0.10
LITTLE = 0.05


class Window(msgspec.Struct, frozen=True):
    """A slice of the run, for the timeline."""

    start_s: float
    answers_per_s: float
    p50_ms: float | None
    p95_ms: float | None


class Measurement(msgspec.Struct, kw_only=True):
    """See :mod:`benchmarks.recording` for the outcomes; latencies in milliseconds."""

    scenario: str
    workload: str
    protocol: str
    label: str
    variant: str = ""
    run: int = 0
    load: dict[str, Any]
    duration_s: float
    verdict: str
    reasons: list[str]
    notes: list[str] = []
    counts: dict[str, int]
    statuses: dict[str, int]
    faults: dict[str, int]
    throughput: float
    """Answers a second, right or wrong."""
    goodput: float
    """Right answers a second within the objective."""
    slo: Slo
    meets_slo: bool
    latency: Latency
    """From the intended time; right and wrong answers and timeouts."""
    service: Latency
    """From the moment of sending: what a coordinated tool would report."""
    shed_latency: Latency
    bytes_in: int
    bytes_out: int
    steady: bool
    windows: list[Window]
    littles_law_error: float | None = None
    mean_batch: float | None = None
    batches: dict[str, int] = {}
    triton_ms: dict[str, float] = {}
    cpu_us_per_request: dict[str, float] = {}
    rss_bytes: int | None = None
    foreign_cpu_share: float | None = None
    """Share of the machine's processors that other programs used meanwhile; above 5 % the machine was not quiet."""
    usage_records: int | None = None
    """Written for this run, warm-up included; they equal the 2xx, or the run is INVALID."""
    tenants: dict[str, Latency] = {}
    interval: Interval | None = None

    @property
    def valid(self) -> bool:
        """INVALID measurements are shown in tables, struck out, and never plotted."""
        return self.verdict == "VALID"


def of_closed(run: ClosedRun, *, scenario: str, workload: str, protocol: str, slo: Slo, seed: int) -> Measurement:
    """A closed loop's measurement."""
    recording = run.recording
    reasons = [] if len(recording) else ["no samples"]
    measurement = _common(recording, run.duration_s, slo, run.start_ns)
    good = recording.latencies_us(Outcome.OK)
    total = max(1, len(recording))
    latency = measurement["latency"]
    little = None
    if latency.mean is not None and len(recording) > 100:
        rate = len(recording) / run.duration_s
        little = abs(run.concurrency - rate * latency.mean / 1000) / run.concurrency
    measurement["notes"] = _notes(recording, measurement, little)
    cpu_share = run.cpu_s / max(run.duration_s, 1e-9)
    if cpu_share > BUSY_GENERATOR:
        measurement["notes"].append(f"a lower bound: the generator used {cpu_share:.0%} of a core")
    return Measurement(
        scenario=scenario,
        workload=workload,
        protocol=protocol,
        label=f"{run.concurrency} user{'' if run.concurrency == 1 else 's'}",
        load={
            "model": "closed",
            "users": run.concurrency,
            "think_time_s": 0,
            "seed": seed,
            "generator_cpu_share": round(cpu_share, 3),
        },
        verdict="INVALID" if reasons else "VALID",
        reasons=reasons,
        goodput=float(np.count_nonzero(good <= slo.ms * 1000)) / run.duration_s,
        meets_slo=np.count_nonzero(good <= slo.ms * 1000) >= total * slo.percentile / 100,
        littles_law_error=little,
        **measurement,
    )


def of_open(
    run: OpenRun, *, scenario: str, workload: str, protocol: str, label: str, slo: Slo, seed: int, arrivals: str
) -> Measurement:
    """An open loop's measurement."""
    recording = run.recording
    start = min(recording.intended, default=0)
    measurement = _common(recording, run.duration_s, slo, start)
    measurement["notes"] = _notes(recording, measurement, None)
    return Measurement(
        scenario=scenario,
        workload=workload,
        protocol=protocol,
        label=label,
        load={
            "model": "open",
            "arrivals": arrivals,
            "offered": run.offered_rate,
            "issued": run.issued_rate,
            "seed": seed,
            "lag_ms": run.lag_ms,
            "dropped": run.dropped,
            "generator_cpu_share": round(run.cpu_s / max(run.wall_s, 1e-9), 3),
        },
        verdict=run.verdict,
        reasons=list(run.reasons),
        goodput=run.within(slo.ms),
        meets_slo=run.meets(slo.percentile, slo.ms),
        **measurement,
    )


def attach(
    measurement: Measurement,
    *,
    statistics: Statistics | None = None,
    before: Resources | None = None,
    after: Resources | None = None,
    answered: int = 0,
    usage_records: int | None = None,
) -> None:
    """Add what the system said about itself during the run.

    ``answered`` are the 2xx that the clients got, warm-up included; where the usage records that came
    differ, the run is INVALID: requests were lost or counted twice.
    """
    if statistics is not None and statistics.executions:
        measurement.mean_batch = statistics.mean_batch
        measurement.batches = {str(size): count for size, count in sorted(statistics.batches.items())}
        measurement.triton_ms = statistics.split_ms()
    if before is not None and after is not None:
        measurement.cpu_us_per_request = {
            name: (seconds - before.cpu_s.get(name, 0.0)) / max(1, answered) * 1e6
            for name, seconds in after.cpu_s.items()
        }
        measurement.rss_bytes = after.rss_bytes
        measurement.foreign_cpu_share = round(after.foreign_share(before), 4)
    if usage_records is not None:
        measurement.usage_records = usage_records
        if usage_records != answered:
            measurement.verdict = "INVALID"
            measurement.reasons.append(f"{usage_records} usage records for {answered} answered requests")


def latency_of_tenant(recording: Recording, tenant: int) -> Latency:
    """Latency of one tenant's answered and timed-out requests."""
    keep = (np.asarray(recording.tenant) == tenant) & recording.mask()
    return Latency.of(histogram_of((np.asarray(recording.done)[keep] - np.asarray(recording.intended)[keep]) // 1000))


def _common(recording: Recording, duration_s: float, slo: Slo, start_ns: int) -> dict[str, Any]:
    windows = _windows(recording, start_ns, duration_s)
    answers = recording.count(Outcome.OK) + recording.count(Outcome.WRONG)
    return {
        "duration_s": duration_s,
        "counts": {outcome.name.lower(): recording.count(outcome) for outcome in Outcome},
        "statuses": recording.statuses(),
        "faults": dict(recording.faults.most_common(10)),
        "throughput": answers / duration_s,
        "slo": slo,
        "latency": Latency.of(histogram_of(recording.latencies_us())),
        "service": Latency.of(histogram_of(recording.service_us())),
        "shed_latency": Latency.of(histogram_of(recording.latencies_us(Outcome.SHED))),
        "bytes_in": sum(recording.bytes_in),
        "bytes_out": recording.bytes_out,
        "steady": _steady(windows),
        "windows": windows,
    }


def _windows(recording: Recording, start_ns: int, duration_s: float) -> list[Window]:
    count = max(WINDOWS, min(60, int(duration_s)))
    width = duration_s / count
    if not len(recording):
        return []
    keep = recording.mask(Outcome.OK, Outcome.WRONG)
    done = (np.asarray(recording.done)[keep] - start_ns) / 1e9
    latency = (np.asarray(recording.done)[keep] - np.asarray(recording.intended)[keep]) / 1e6
    windows = []
    for number in range(count):
        inside = latency[(done >= number * width) & (done < (number + 1) * width)]
        half = float(np.percentile(inside, 50)) if len(inside) >= 7 else None
        high = float(np.percentile(inside, 95)) if len(inside) >= 90 else None
        windows.append(Window(number * width, len(inside) / width, half, high))
    return windows


def _steady(windows: list[Window]) -> bool:
    """Whether the last three sixths of the run agree within 10 % in throughput and median latency."""
    third = max(1, len(windows) // WINDOWS)
    parts = [windows[len(windows) - (number + 1) * third : len(windows) - number * third] for number in range(3)]
    rates = [float(np.mean([window.answers_per_s for window in part])) for part in parts if part]
    halves = [window.p50_ms for part in parts for window in part if window.p50_ms is not None]
    if len(rates) < 3 or min(rates) <= 0:
        return False
    even = max(rates) <= min(rates) * (1 + STEADY)
    return even and (not halves or max(halves) <= min(halves) * (1 + 2 * STEADY))


def _notes(recording: Recording, measurement: dict[str, Any], little: float | None) -> list[str]:
    notes = []
    if not measurement["steady"]:
        notes.append("unstable: the last windows differ by more than 10 %")
    if little is not None and little > LITTLE:
        notes.append(f"Little's law is off by {little:.0%}")
    wrong = recording.count(Outcome.WRONG)
    if wrong:
        notes.append(f"{wrong} wrong answers")
    return notes
