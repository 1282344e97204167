"""Confidence intervals by resampling whole runs: requests within one run are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[np.float64]
RESAMPLES = 2_000


class Interval(msgspec.Struct, frozen=True):
    """An estimate with its 95 % confidence interval; ``low`` and ``high`` are None below three runs.

    ``runs`` 0 means that there was nothing to estimate from.
    """

    value: float
    low: float | None
    high: float | None
    runs: int

    def __str__(self) -> str:
        if not self.runs:
            return "-"
        if self.low is None or self.high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def middle(values: Sequence[float]) -> float:
    """The plain median; 0 of nothing."""
    return float(np.median(np.asarray(values, dtype=np.float64))) if len(values) else 0.0


def median(values: Sequence[float], seed: int = 1) -> Interval:
    """The median over runs; NaN is left out."""
    found = np.asarray(values, dtype=np.float64)
    return _interval([found[np.isfinite(found)]], _middles, seed)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 1) -> Interval:
    """Median of the ratios of neighbouring runs: what an interleaved A/B/A/B measures.

    Pairs whose denominator is 0 (nothing was answered) say nothing and are left out.
    """
    pairs = [(top, bottom) for top, bottom in zip(numerator, denominator, strict=True) if bottom > 0]
    ratios = np.asarray([top / bottom for top, bottom in pairs], dtype=np.float64)
    return _interval([ratios], _middles, seed)


def paired_difference(left: Sequence[float], right: Sequence[float], seed: int = 1) -> Interval:
    """Median of the differences of neighbouring runs; pairs with NaN are left out."""
    differences = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    return _interval([differences], _middles, seed)


def change(before: Sequence[float], after: Sequence[float], seed: int = 1) -> Interval:
    """Relative change of the median between two independent sets of runs: 0.05 is five per cent more."""
    parts = [np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)]
    return _interval(parts, _growth, seed)


def _middles(parts: Sequence[Values]) -> Values:
    """The median of each row."""
    return np.asarray(np.median(parts[0], axis=1))


def _growth(parts: Sequence[Values]) -> Values:
    before, after = (np.median(part, axis=1) for part in parts)
    return np.asarray(after / before - 1)


def _interval(parts: Sequence[Values], statistic: Callable[[Sequence[Values]], Values], seed: int) -> Interval:
    """``statistic`` makes a number of each row of its arrays; a row is one resample."""
    runs = min(len(part) for part in parts)
    if runs == 0:
        return Interval(0.0, None, None, 0)
    value = float(statistic([part[np.newaxis] for part in parts])[0])
    if runs < 3:
        return Interval(value, None, None, runs)
    numbers = np.random.default_rng(seed)
    drawn = [part[numbers.integers(0, len(part), (RESAMPLES, len(part)))] for part in parts]
    low, high = np.percentile(statistic(drawn), [2.5, 97.5])
    return Interval(value, float(low), float(high), runs)
