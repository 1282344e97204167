"""A run in slices of time: whether it was steady, and when it came back to its objective."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.recording import Outcome, Recording, sample_floor
from benchmarks.suite import Slo

PARTS = 6
"""A run is steady if the last three of so many parts agree."""
STEADY = 0.10
MEDIAN_STEADY = 0.20
SLICE_S = 0.25
"""Recovery is looked for in slices of so many seconds."""


class Window(msgspec.Struct, frozen=True):
    """A slice of the run, for the timeline."""

    start_s: float
    answers_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None = None


def windows(recording: Recording, start_ns: int, duration_s: float) -> list[Window]:
    """A second each, at least six; latency from the intended time, by when the answer came."""
    return _sliced(recording, start_ns, duration_s, max(PARTS, min(60, int(duration_s))))


def _sliced(recording: Recording, start_ns: int, duration_s: float, count: int) -> list[Window]:
    if not len(recording):
        return []
    width = duration_s / count
    keep = recording.mask(Outcome.OK, Outcome.WRONG)
    done = (np.asarray(recording.done)[keep] - start_ns) / 1e9
    latency = (np.asarray(recording.done)[keep] - np.asarray(recording.intended)[keep]) / 1e6
    found = []
    for number in range(count):
        inside = latency[(done >= number * width) & (done < (number + 1) * width)]
        values = [_percentile(inside, percentile) for percentile in (50.0, 95.0, 99.0)]
        found.append(Window(number * width, len(inside) / width, *values))
    return found


def _percentile(values: npt.NDArray[np.float64], percentile: float) -> float | None:
    return float(np.percentile(values, percentile)) if len(values) >= sample_floor(percentile) else None


def unsteady(recording: Recording, start_ns: int, duration_s: float) -> str | None:
    """Why the last three sixths of the run are no steady state; None if they are one.

    Throughput and p99 must agree within 10 %. Where a part has too few samples for its p99, its median
    stands for it and must agree within 20 %.
    """
    parts = _sliced(recording, start_ns, duration_s, PARTS)[-3:]
    rates = [part.answers_per_s for part in parts]
    if not rates or min(rates) <= 0:
        return "unstable: nothing was answered in one of the last windows"
    if _spread(rates) > STEADY:
        return f"unstable: throughput of the last windows differs by {_spread(rates):.0%}"
    tails = [part.p99_ms for part in parts if part.p99_ms is not None]
    if len(tails) == len(parts):
        return f"unstable: p99 of the last windows differs by {_spread(tails):.0%}" if _spread(tails) > STEADY else None
    halves = [part.p50_ms for part in parts if part.p50_ms is not None]
    if halves and _spread(halves) > MEDIAN_STEADY:
        return f"unstable: the median latency of the last windows differs by {_spread(halves):.0%}"
    return None


def unsteady_rates(rates: list[float]) -> str | None:
    """The same from answers by second alone."""
    size = len(rates) // PARTS
    if not size:
        return "unstable: too short to say"
    last = [float(np.mean(rates[len(rates) - (part + 1) * size : len(rates) - part * size])) for part in range(3)]
    if _spread(last) > STEADY:
        return f"unstable: throughput of the last windows differs by {_spread(last):.0%}"
    return None


def _spread(values: list[float]) -> float:
    return max(values) / min(values) - 1 if min(values) > 0 else float("inf")


def recovery_s(recording: Recording, calm_ns: int, slo: Slo) -> float | None:
    """Seconds from ``calm_ns``, when the overload ended, until the objective is met again and stays met.

    Requests count by their intended time, in slices of a quarter of a second. None: not within the run.
    """
    later = recording.since(calm_ns)
    if not len(later):
        return None
    intended, done = np.asarray(later.intended), np.asarray(later.done)
    fine = later.mask(Outcome.OK) & (done - intended <= slo.ms * 1e6)
    slices = ((intended - calm_ns) / 1e9 / SLICE_S).astype(np.int64)
    numbers = np.unique(slices)
    bad = [number for number in numbers if fine[slices == number].mean() < slo.percentile / 100]
    if not bad:
        return 0.0
    return float((bad[-1] + 1) * SLICE_S) if bad[-1] != numbers[-1] else None
