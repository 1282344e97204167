"""Schedules are absolute and pure; nobody sleeps here."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pacing import bursts, constant, due, poisson, steps

MS = 1_000_000


@pytest.mark.parametrize(
    ("sent", "elapsed_ms", "count", "wait_ms"),
    [
        (0, 0, 1, 10),  # the first is due at once
        (1, 0, 0, 10),
        (1, 4, 0, 6),
        (1, 10, 1, 10),
        (1, 35, 3, 5),  # late: everything that is due, and the next at its own time, not 10 ms from now
        (5, 35, 0, 15),  # ahead (cannot happen): wait for the schedule
        (0, 1000, 10, 0),  # far too late: all of it, nothing left to wait for
        (10, 95, 0, 0),
    ],
)
def test_due(sent: int, elapsed_ms: int, count: int, wait_ms: int) -> None:
    schedule = constant(100, 0.1)
    assert due(schedule, sent, elapsed_ms * MS) == (count, wait_ms * MS)


def test_constant_is_evenly_spaced() -> None:
    schedule = constant(250, 2)
    assert len(schedule) == 500
    assert set(np.diff(schedule).tolist()) == {4 * MS}


def test_poisson_has_the_rate_and_the_spread_of_its_process() -> None:
    schedule = poisson(1000, 20, seed=3)
    gaps = np.diff(schedule) / MS
    assert len(schedule) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: deviation = mean
    assert (np.diff(schedule) >= 0).all()
    assert schedule[-1] < 20_000 * MS


def test_a_seed_gives_the_same_schedule_again() -> None:
    assert (poisson(100, 5, 7) == poisson(100, 5, 7)).all()
    assert len(poisson(100, 5, 7)) != len(poisson(100, 5, 8)) or (poisson(100, 5, 7) != poisson(100, 5, 8)).any()


def test_steps_change_the_rate_and_keep_pauses_empty() -> None:
    schedule = steps([(1000, 1), (0, 1), (100, 1)], seed=1)
    seconds = np.bincount(schedule // (1000 * MS), minlength=3)
    assert seconds[0] == pytest.approx(1000, rel=0.15)
    assert seconds[1] == 0
    assert seconds[2] == pytest.approx(100, rel=0.4)


def test_bursts_keep_the_mean_and_hold_half_of_all_requests() -> None:
    schedule = bursts(500, 40, seed=2, factor=4, period_s=4)
    inside = ((schedule / 1e9) % 4 < 0.5).mean()
    assert len(schedule) == pytest.approx(20_000, rel=0.05)
    assert inside == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("rate", "duration"), [(0, 1), (-1, 1), (1, 0)])
def test_a_rate_or_duration_of_nothing_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson(rate, duration, 1)
