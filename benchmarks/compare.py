"""Two reports of one suite: what changed, and is it more than noise?"""

from __future__ import annotations

from typing import Literal

import msgspec

from benchmarks.bootstrap import Interval, change
from benchmarks.points import grouped, summary
from benchmarks.repeatability import noise_floors
from benchmarks.runner import Results

NOISE_FLOOR = 0.05
"""A change below 5 % is never claimed, whatever its interval; nor one below what A/A pairs differ by."""

Word = Literal["better", "worse", "no difference", "too few runs", "INVALID"]


class Difference(msgspec.Struct, frozen=True):
    """One point in both reports; positive ``change`` means more goodput, or a longer latency."""

    point: str
    goodput: tuple[float, float]
    change: Interval | None
    p95_ms: tuple[float | None, float | None]
    word: Word


def differences(before: Results, after: Results) -> list[Difference]:
    """Points that are in both, in the order of the first."""
    old, new = grouped(before.measurements), grouped(after.measurements)
    floors = noise_floors([*before.measurements, *after.measurements])
    floor = max([NOISE_FLOOR, *(found.size for found in floors)])
    found = []
    for key in old:
        if key not in new:
            continue
        left, right = old[key], new[key]
        name = " ".join(part for part in key if part)
        pair = (_middle([item.goodput for item in left]), _middle([item.goodput for item in right]))
        latencies = (summary(left).percentile("p95"), summary(right).percentile("p95"))
        if not all(item.valid for item in (*left, *right)):
            found.append(Difference(name, pair, None, latencies, "INVALID"))
            continue
        if min(pair) <= 0:
            found.append(Difference(name, pair, None, latencies, "INVALID"))
            continue
        interval = change([item.goodput for item in left], [item.goodput for item in right])
        found.append(Difference(name, pair, interval, latencies, verdict(interval, floor)))
    return found


def verdict(interval: Interval, floor: float = NOISE_FLOOR) -> Word:
    """A change is claimed if its interval excludes 0 and it is larger than the noise floor."""
    if interval.low is None or interval.high is None:
        return "too few runs"
    if abs(interval.value) < floor or interval.low <= 0 <= interval.high:
        return "no difference"
    return "better" if interval.value > 0 else "worse"


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
