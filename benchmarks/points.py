"""Points of a report: the repetitions of one load, summed up over runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.bootstrap import Interval, median
from benchmarks.measurement import Measurement
from benchmarks.recording import Latency, merged, sample_floor
from benchmarks.suite import Slo

Key = tuple[str, str, str, str, str]


def grouped(measurements: Sequence[Measurement]) -> dict[Key, list[Measurement]]:
    """Repetitions of one point, by scenario, workload, protocol, load and variant.

    Where a run derives its rate from the peak it found (``412/s, hot key``), the rate is no part of the name.
    """
    groups: dict[Key, list[Measurement]] = {}
    for item in measurements:
        label = item.label.split("/s, ", 1)[-1]
        groups.setdefault((item.scenario, item.workload, item.protocol, label, item.variant), []).append(item)
    return groups


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in milliseconds; counts are sums over runs."""

    scenario: str
    workload: str
    protocol: str
    label: str
    variant: str
    runs: int
    valid: bool
    """Every run was."""
    steady: bool
    """Every run was."""
    reasons: list[str]
    notes: list[str]
    slo: Slo
    meets_slo: bool
    """In every run."""
    enough: bool
    """Whether every run had as many requests as the objective's percentile needs."""
    throughput: Interval
    goodput: Interval
    latency: Latency | None
    """Of the merged histograms; None where the report has none."""
    intervals: dict[str, Interval]
    """95 % over runs, by percentile."""
    service_p99_ms: float | None
    shed_latency: Latency | None
    sent: int
    shed: int
    faults: int

    def percentile(self, name: str) -> float | None:
        """Of all runs together; the median over runs where a report has no histograms."""
        if self.latency is not None:
            return self.latency.percentiles[name]
        found = self.intervals.get(name)
        return found.value if found is not None else None

    @property
    def objective(self) -> str:
        """The objective, and whether it was met."""
        word = "met" if self.meets_slo else "missed" if self.enough else "too few requests to say"
        return f"{self.slo}: {word}"


def summary(group: Sequence[Measurement]) -> Point:
    """``group`` holds the repetitions of one point."""
    last = group[-1]
    floor = sample_floor(last.slo.percentile)
    return Point(
        scenario=last.scenario, workload=last.workload, protocol=last.protocol,
        label=last.label.split("/s, ", 1)[-1] if len(group) > 1 else last.label, variant=last.variant,
        runs=len(group), valid=all(item.valid for item in group), steady=all(item.steady for item in group),
        reasons=_union([item.reasons for item in group]), notes=_union([item.notes for item in group]),
        slo=last.slo, meets_slo=all(item.meets_slo for item in group),
        enough=all(item.judged >= floor for item in group),
        throughput=median([item.throughput for item in group]), goodput=median([item.goodput for item in group]),
        latency=_merged([item.histogram for item in group]),
        intervals={
            name: median([value for value in values if value is not None])
            for name in last.latency.percentiles
            if None not in (values := [item.latency.percentiles[name] for item in group])
        },
        service_p99_ms=_middle(group, lambda item: item.service.percentiles["p99"]),
        shed_latency=_merged([item.shed_histogram for item in group if item.counts["shed"]]),
        sent=sum(sum(item.counts.values()) for item in group), shed=sum(item.counts["shed"] for item in group),
        faults=sum(item.counts[name] for item in group for name in ("wrong", "error", "timeout")),
    )  # fmt: skip


def _merged(histograms: Sequence[str]) -> Latency | None:
    if not histograms or not all(histograms):
        return None
    return Latency.of(merged([text.encode() for text in histograms]))


def _middle(group: Sequence[Measurement], value: Callable[[Measurement], float | None]) -> float | None:
    values = [found for item in group if (found := value(item)) is not None]
    return median(values).value if len(values) == len(group) else None


def _union(lists: Sequence[Sequence[str]]) -> list[str]:
    """Each text once; with the number of runs that say it where not all do."""
    counted = Counter(text for texts in lists for text in dict.fromkeys(texts))
    return [
        text if number == len(lists) else f"{text} ({number} of {len(lists)} runs)" for text, number in counted.items()
    ]
