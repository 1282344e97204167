"""Whether a report's own numbers would come out again: A/A noise, and how far the runs agree."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.bootstrap import Interval, median, middle, paired_ratio
from benchmarks.measurement import Measurement

PROMISE = 0.05
"""A headline must come out again within 5 %."""
FOREIGN = 0.05
"""Share of the processors that other programs may use before a machine is called noisy."""
STEADY_LOADS = ("single_stream", "closed_sweep", "offline", "server")
AA = ("A", "A'")
"""Labels of the two halves of an A/A measurement."""


class Headline(msgspec.Struct, frozen=True):
    """The most right answers in time of one workload, and how far the runs agree on it."""

    workload: str
    protocol: str
    variant: str
    label: str
    goodput: Interval
    within: float | None
    """Relative distance of the 95 % interval's farther end; None below three runs."""
    p50_ms: float | None
    p95_ms: float | None


class NoiseFloor(msgspec.Struct, frozen=True):
    """A/A: the same thing measured twice, in turns."""

    workload: str
    protocol: str
    ratio: Interval

    @property
    def size(self) -> float:
        """The largest difference that means nothing."""
        ends = (self.ratio.low, self.ratio.value, self.ratio.high)
        return max(abs(end - 1) for end in ends if end is not None)


def repeats_within(values: Sequence[float]) -> float | None:
    """How far from its median a repetition may lie, by the 95 % interval over runs; None below three runs."""
    found = median(values)
    if found.low is None or found.high is None or not found.value:
        return None
    return max(found.high - found.value, found.value - found.low) / found.value


def headlines(groups: Sequence[Sequence[Measurement]]) -> list[Headline]:
    """The best point of each workload, protocol and variant; ``groups`` are the repetitions of each point.

    Only points that are VALID and met their objective every time count.
    """
    best: dict[tuple[str, str, str], Sequence[Measurement]] = {}
    for group in groups:
        first = group[0]
        if first.scenario not in STEADY_LOADS or not all(item.valid and item.meets_slo for item in group):
            continue
        key = (first.workload, first.protocol, first.variant)
        if key not in best or _rank(group) > _rank(best[key]):
            best[key] = group
    return [_headline(*key, group) for key, group in sorted(best.items())]


def _rank(group: Sequence[Measurement]) -> tuple[bool, float]:
    """Points with an interval come before single runs, whatever those reached."""
    return len(group) >= 3, middle([item.goodput for item in group])


def middle_percentile(group: Sequence[Measurement], name: str) -> float | None:
    """The median over runs of a latency percentile, ms; None if a run had too few samples for it."""
    found = [item.latency.percentiles[name] for item in group]
    values = [value for value in found if value is not None]
    return middle(values) if len(values) == len(found) else None


def _headline(workload: str, protocol: str, variant: str, group: Sequence[Measurement]) -> Headline:
    values = [item.goodput for item in group]
    label = group[-1].label
    return Headline(
        workload, protocol, variant, label, median(values), repeats_within(values), middle_percentile(group, "p50"),
        middle_percentile(group, "p95"),
    )  # fmt: skip


def noise_floors(measurements: Sequence[Measurement]) -> list[NoiseFloor]:
    """A/A pairs of the ``noise_floor`` scenario, by workload and protocol."""
    halves: dict[tuple[str, str], dict[str, list[float]]] = {}
    for item in measurements:
        if item.scenario == "noise_floor":
            pair = halves.setdefault((item.workload, item.protocol), {label: [] for label in AA})
            pair[item.label.rsplit(", ", 1)[-1]].append(item.throughput)
    return [
        NoiseFloor(workload, protocol, paired_ratio(pair[AA[1]], pair[AA[0]]))
        for (workload, protocol), pair in halves.items()
    ]


def disturbances(measurements: Sequence[Measurement]) -> list[str]:
    """Whether other programs took processor time while the system was measured (known where it runs here)."""
    shares = [item.foreign_cpu_share or 0.0 for item in measurements]
    busy = [share for share in shares if share > FOREIGN]
    if not busy:
        return []
    return [f"other programs used up to {max(busy):.0%} of the processors in {len(busy)} of {len(shares)} measurements"]


def doubts(found: Sequence[Headline], floors: Sequence[NoiseFloor]) -> list[str]:
    """Why the numbers would not come out again; empty where they would."""
    lines = [
        f"{floor.workload} {floor.protocol} measured twice in turns differs by up to {floor.size:.1%}: "
        "the machine was too noisy"
        for floor in floors
        if floor.size > PROMISE
    ]
    for item in found:
        if item.within is not None and item.within > PROMISE:
            name = " ".join(part for part in (item.workload, item.protocol, item.variant, item.label) if part)
            lines.append(f"{name}: runs agree within {item.within:.0%} only: too noisy to come out again within 5 %")
    if found and all(item.within is None for item in found):
        lines.append("fewer than three runs cannot say whether the numbers come out again within 5 % (--runs 5)")
    return lines
