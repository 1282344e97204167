"""When requests are due: absolute schedules, made before the run and independent of any answer.

A schedule is a sorted ``int64`` array of nanoseconds after the start. Nothing here sleeps or reads a
clock, so a table of cases tests it (vegeta's ``pacer.go`` is the model).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Schedule: TypeAlias = npt.NDArray[np.int64]

NS = 1_000_000_000


def constant(rate: float, duration_s: float) -> Schedule:
    """``rate`` requests a second, evenly spaced from 0, for ``duration_s`` seconds."""
    _positive(rate, duration_s)
    count = int(rate * duration_s)
    return np.asarray(np.arange(count, dtype=np.float64) * (NS / rate), dtype=np.int64)


def poisson(rate: float, duration_s: float, seed: int) -> Schedule:
    """A Poisson process: exponential gaps with a mean of ``1 / rate`` seconds (MLPerf's Server scenario)."""
    _positive(rate, duration_s)
    numbers = np.random.default_rng(seed)
    expected = rate * duration_s
    gaps = numbers.exponential(NS / rate, int(expected + 6 * expected**0.5) + 16)
    offsets = np.cumsum(gaps)
    inside: Schedule = offsets[offsets < duration_s * NS].astype(np.int64)
    return inside


def steps(segments: Sequence[tuple[float, float]], seed: int) -> Schedule:
    """Poisson arrivals whose rate changes: ``segments`` are (rate, seconds); a rate of 0 is a pause."""
    parts: list[Schedule] = []
    start_s = 0.0
    for number, (rate, duration_s) in enumerate(segments):
        if rate > 0:
            parts.append(poisson(rate, duration_s, seed + number) + np.int64(start_s * NS))
        start_s += duration_s
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def bursts(mean_rate: float, duration_s: float, seed: int, *, factor: float = 4.0, period_s: float = 4.0) -> Schedule:
    """A square wave around ``mean_rate``: ``factor`` times it in the first ``1 / (2 factor)`` of each period,
    and what is left of the mean in the rest; half of all requests come in bursts.
    """
    share = 1 / (2 * factor)
    calm = mean_rate * 0.5 / (1 - share)
    count = max(1, round(duration_s / period_s))
    pair = [(mean_rate * factor, period_s * share), (calm, period_s * (1 - share))]
    return steps(pair * count, seed)


def due(schedule: Schedule, sent: int, elapsed_ns: int) -> tuple[int, int]:
    """How many requests are to be sent now, and the nanoseconds until the next one (0 when none is left).

    ``sent`` requests have been sent, ``elapsed_ns`` nanoseconds have passed. Whoever comes late sends
    all that is due at once: the schedule is never stretched.
    """
    last = int(np.searchsorted(schedule, elapsed_ns, side="right"))
    count = max(0, last - sent)
    following = sent + count
    wait = int(schedule[following]) - elapsed_ns if following < len(schedule) else 0
    return count, max(0, wait)


def _positive(rate: float, duration_s: float) -> None:
    if rate <= 0 or duration_s <= 0:
        raise ValueError(f"rate and duration must be positive, not {rate} and {duration_s}")
