"""One measured point of a scenario, with everything the report says about it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.closedloop import ClosedRun
from benchmarks.observe import Resources, Statistics
from benchmarks.openloop import OpenRun
from benchmarks.recording import Latency, Outcome, Recording, encoded, histogram_of
from benchmarks.stability import Window, unsteady, windows
from benchmarks.suite import Slo
from benchmarks.tenancy import Fairness, Tenant

BUSY_GENERATOR = 0.8
"""Share of a core beyond which a closed loop measures its own generator."""
LITTLE = 0.05
TIMING = re.compile(rb"([\w-]+);dur=([0-9.]+)")
LEAST_CANCELLED = 0.05
"""Share of requests that must have been cancelled where that is the scenario."""


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
    histogram: str = ""
    """``latency`` as HdrHistogram encodes it: runs are merged, percentiles never averaged."""
    shed_histogram: str = ""
    connections: int | None = None
    """The most that the generator had open at once."""
    bytes_in_per_s: float | None = None
    bytes_out_per_s: float | None = None
    inferences_per_s: float | None = None
    """Rows that Triton computed for the answers, a second."""
    gateway_ms: dict[str, float] = {}
    """Mean time of an answer in each of the gateway's stages, from a sample of ``Server-Timing``."""
    max_rate: float | None = None
    """The highest rate within the objective that the search found; 0 for none."""
    recovery_s: float | None = None
    """From the end of an overload until the objective is met again and stays met."""
    first_answers_ms: list[float] = []
    """Of a stack that has just started, in order."""
    littles_law_error: float | None = None
    mean_batch: float | None = None
    batches: dict[str, int] = {}
    triton_ms: dict[str, float] = {}
    cpu_us_per_request: dict[str, float] = {}
    rss_bytes: int | None = None
    """Resident memory of the whole system when the run had ended."""
    peak_rss_bytes: int | None = None
    """The most of it during the run."""
    foreign_cpu_share: float | None = None
    """Share of the machine's processors that other programs used meanwhile; above 5 % the machine was not quiet."""
    usage_records: int | None = None
    """Written for this run, warm-up included; they equal the 2xx, or the run is INVALID."""
    tenants: dict[str, Tenant] = {}
    fairness: Fairness | None = None

    @property
    def valid(self) -> bool:
        """INVALID measurements are shown in tables, struck out, and never plotted."""
        return self.verdict == "VALID"

    @property
    def judged(self) -> int:
        """Requests that count for the objective."""
        return sum(self.counts.values()) - self.counts.get("cancelled", 0)

    def invalidate(self, reason: str) -> None:
        """Make it INVALID, and say why."""
        self.verdict = "INVALID"
        self.reasons.append(reason)


def of_closed(run: ClosedRun, *, scenario: str, workload: str, protocol: str, slo: Slo, seed: int) -> Measurement:
    """A closed loop's measurement."""
    recording = run.recording
    reasons = [] if len(recording) else ["no samples"]
    common = _common(recording, run.duration_s, slo, run.start_ns)
    little = None
    if len(recording) > 100:
        held = len(recording) / run.duration_s * _mean_s(recording)
        little = abs(run.concurrency - held) / run.concurrency
    common["notes"] += _law(little)
    cpu_share = run.cpu_s / max(run.duration_s, 1e-9)
    if cpu_share > BUSY_GENERATOR:
        common["notes"].append(f"a lower bound: the generator used {cpu_share:.0%} of a core")
    return Measurement(
        scenario=scenario,
        workload=workload,
        protocol=protocol,
        label=label_of(run.concurrency),
        load={
            "model": "closed",
            "engine": "asyncio",
            "users": run.concurrency,
            "think_time_s": 0,
            "seed": seed,
            "generator_cpu_share": round(cpu_share, 3),
        },
        verdict="INVALID" if reasons else "VALID",
        reasons=reasons,
        goodput=float(np.count_nonzero(recording.latencies_us(Outcome.OK) <= slo.ms * 1000)) / run.duration_s,
        littles_law_error=little,
        connections=run.connections,
        **common,
    )


def of_open(
    run: OpenRun, *, scenario: str, workload: str, protocol: str, label: str, slo: Slo, seed: int, arrivals: str
) -> Measurement:
    """An open loop's measurement."""
    recording = run.recording
    common = _common(recording, run.duration_s, slo, run.start_ns)
    little = None
    if len(recording) > 100 and run.mean_in_flight > 0:
        held = len(recording) / run.duration_s * _mean_s(recording)
        little = abs(run.mean_in_flight - held) / run.mean_in_flight
    common["notes"] += _law(little)
    return Measurement(
        scenario=scenario,
        workload=workload,
        protocol=protocol,
        label=label,
        load={
            "model": "open",
            "engine": "asyncio",
            "arrivals": arrivals,
            "offered": run.offered_rate,
            "issued": run.issued_rate,
            "seed": seed,
            "lag_ms": run.lag_ms,
            "dropped": run.dropped,
            "mean_in_flight": round(run.mean_in_flight, 3),
            "generator_cpu_share": round(run.cpu_s / max(run.wall_s, 1e-9), 3),
        },
        verdict=run.verdict,
        reasons=list(run.reasons),
        goodput=run.within(slo.ms),
        littles_law_error=little,
        connections=run.connections,
        **common,
    )


def label_of(users: int) -> str:
    """A closed loop's load in words."""
    return f"{users} user{'' if users == 1 else 's'}"


def attach(
    measurement: Measurement,
    *,
    statistics: Statistics | None = None,
    before: Resources | None = None,
    after: Resources | None = None,
    peak_rss_bytes: int | None = None,
    answered: int = 0,
    usage_records: int | None = None,
) -> None:
    """Add what the system said about itself during the run.

    ``answered`` are the 2xx that the clients got, warm-up included; where the usage records that came
    differ, the run is INVALID: requests were lost or counted twice.
    """
    if statistics is not None and statistics.executions:
        measurement.inferences_per_s = measurement.throughput * statistics.inferences / max(1, answered)
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
    measurement.peak_rss_bytes = peak_rss_bytes
    if usage_records is not None:
        measurement.usage_records = usage_records
        if usage_records != answered:
            measurement.invalidate(f"{usage_records} usage records for {answered} answered requests")


def _common(recording: Recording, duration_s: float, slo: Slo, start_ns: int) -> dict[str, Any]:
    answers = recording.count(Outcome.OK) + recording.count(Outcome.WRONG)
    latency, shed = histogram_of(recording.latencies_us()), histogram_of(recording.latencies_us(Outcome.SHED))
    unstable = unsteady(recording, start_ns, duration_s)
    return {
        "duration_s": duration_s,
        "counts": {outcome.name.lower(): recording.count(outcome) for outcome in Outcome},
        "statuses": recording.statuses(),
        "faults": dict(recording.faults.most_common(10)),
        "throughput": answers / duration_s,
        "slo": slo,
        "meets_slo": recording.meets(slo.percentile, slo.ms),
        "latency": Latency.of(latency),
        "histogram": encoded(latency),
        "service": Latency.of(histogram_of(recording.service_us())),
        "shed_latency": Latency.of(shed),
        "shed_histogram": encoded(shed) if shed.get_total_count() else "",
        "bytes_in": sum(recording.bytes_in),
        "bytes_out": sum(recording.bytes_out),
        "bytes_in_per_s": sum(recording.bytes_in) / duration_s,
        "bytes_out_per_s": sum(recording.bytes_out) / duration_s,
        "gateway_ms": stages([timing for _, timing in recording.timings]),
        "steady": unstable is None,
        "windows": windows(recording, start_ns, duration_s),
        "notes": notes_on(recording.count(Outcome.WRONG), unstable),
    }


def notes_on(wrong: int, unstable: str | None) -> list[str]:
    """What a reader must know beside the numbers."""
    return [*([unstable] if unstable else []), *([f"{wrong} wrong answers"] if wrong else [])]


def stages(timings: Sequence[bytes]) -> dict[str, float]:
    """Mean milliseconds by stage of ``Server-Timing`` values such as ``auth;dur=0.012, total;dur=3.4``."""
    total: dict[str, float] = {}
    for timing in timings:
        for name, milliseconds in TIMING.findall(timing):
            total[name.decode()] = total.get(name.decode(), 0.0) + float(milliseconds)
    return {name: round(value / len(timings), 4) for name, value in total.items()}


def _mean_s(recording: Recording) -> float:
    """Seconds that a request was under way, however it ended."""
    return float((np.asarray(recording.done) - np.asarray(recording.sent)).mean()) / 1e9


def _law(error: float | None) -> list[str]:
    return [f"Little's law is off by {error:.0%}"] if error is not None and error > LITTLE else []
