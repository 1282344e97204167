"""Whether a run was steady, and when it had recovered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.recording import Outcome, Recording
from benchmarks.stability import recovery_s, unsteady, unsteady_rates, windows
from benchmarks.suite import Slo

MS = 1_000_000
SECOND = 1000 * MS


def _recording(
    seconds: int, per_second: int, latency_ms: Callable[[float], float], *, shed_from_s: float = 1e9
) -> Recording:
    recording = Recording()
    for number in range(seconds * per_second):
        at = number * SECOND // per_second
        refused = at >= shed_from_s * SECOND
        done = at + int(latency_ms(at / SECOND) * MS)
        recording.add(at, at, done, Outcome.SHED if refused else Outcome.OK, 429 if refused else 200)
    return recording


@pytest.mark.parametrize(
    ("latency_ms", "phrase"),
    [
        (lambda _: 2.0, None),
        (lambda at: 2.0 if at < 5 else 2.5, "p99 of the last windows differs by 25%"),
        (lambda at: 9.0 if at < 2 else 2.0, None),  # the first half may do what it likes
    ],
)
def test_the_tail_of_the_last_three_sixths_must_agree(latency_ms: Callable[[float], float], phrase: str | None) -> None:
    found = unsteady(_recording(6, 600, latency_ms), 0, 6.0)
    assert found is None if phrase is None else phrase in (found or "")


def test_where_samples_do_not_suffice_the_median_stands_for_the_tail() -> None:
    assert unsteady(_recording(6, 100, lambda at: 2.0 if at < 5 else 2.2), 0, 6.0) is None
    assert "median" in (unsteady(_recording(6, 100, lambda at: 2.0 if at < 5 else 3.0), 0, 6.0) or "")


def test_throughput_that_stops_is_unstable() -> None:
    assert "nothing was answered" in (unsteady(_recording(5, 100, lambda _: 1.0), 0, 6.0) or "")


@pytest.mark.parametrize(
    ("rates", "phrase"),
    [([9.0, 1.0, 5.0, 5.0, 5.0, 5.0], None), ([5.0] * 5 + [9.0], "differs by 80%"), ([5.0] * 5, "too short")],
)
def test_answers_by_second_alone_tell_it_too(rates: list[float], phrase: str | None) -> None:
    found = unsteady_rates(rates)
    assert found is None if phrase is None else phrase in (found or "")


def test_a_windows_percentiles_need_their_samples() -> None:
    (first, *_) = windows(_recording(6, 500, lambda _: 2.0), 0, 6.0)
    assert (first.p50_ms, first.p95_ms, first.p99_ms) == (2.0, 2.0, 2.0)
    (first, *_) = windows(_recording(6, 100, lambda _: 2.0), 0, 6.0)
    assert (first.p95_ms, first.p99_ms) == (2.0, None)


@pytest.mark.parametrize(
    ("latency_ms", "found"),
    [
        (lambda at: 900.0 if at < 4 else 5.0, 0.0),  # the overload ended at 4 s, and so did its effect
        (lambda at: 900.0 if at < 5.6 else 5.0, 1.75),
        (lambda at: 5.0 if at < 7 else 900.0, None),  # fine at first, late again at the end
        (lambda _: 900.0, None),
    ],
)
def test_recovery_is_when_the_objective_is_met_and_stays_met(
    latency_ms: Callable[[float], float], found: float | None
) -> None:
    assert recovery_s(_recording(8, 100, latency_ms), 4 * SECOND, Slo(100.0)) == found


def test_who_still_refuses_has_not_recovered() -> None:
    assert recovery_s(_recording(8, 100, lambda _: 1.0, shed_from_s=6.0), 4 * SECOND, Slo(100.0)) is None
