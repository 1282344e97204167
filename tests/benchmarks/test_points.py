"""Repetitions of a point are summed up over runs: merged, added, and never the last one alone."""

from __future__ import annotations

import pytest

from benchmarks.compare import differences
from benchmarks.points import grouped, summary
from benchmarks.recording import Latency, encoded, histogram_of
from tests.benchmarks.samples import measurement, results_of


def _run(number: int, milliseconds: int, **changes: object) -> object:
    histogram = histogram_of([milliseconds * 1000] * 200)
    values = {"latency": Latency.of(histogram), "histogram": encoded(histogram), **changes}
    return measurement(8, 100.0 + number, run=number, **values)


def test_repetitions_are_grouped_though_each_run_derives_its_rate() -> None:
    hot = [measurement(1, 100.0, run=run, label=f"{400 + run}/s, hot key") for run in range(3)]
    parts = [measurement(1, 100.0, label=f"571/s, part {number}") for number in (1, 2)]
    assert [len(group) for group in grouped([*hot, *parts]).values()] == [3, 1, 1]


def test_percentiles_are_those_of_all_runs_together() -> None:
    found = summary([_run(0, 1), _run(1, 1), _run(2, 50)])  # the slow one last, and a third of all
    assert found.percentile("p50") == pytest.approx(1, rel=0.01)
    assert found.percentile("p95") == pytest.approx(50, rel=0.01)
    assert found.percentile("p99") == pytest.approx(50, rel=0.01)  # no single run has the samples for it
    assert found.intervals["p50"].runs == 3
    assert "p99" not in found.intervals


def test_counts_are_added_and_a_fault_of_one_run_stays() -> None:
    counts = {"ok": 190, "wrong": 1, "shed": 5, "error": 2, "timeout": 2, "cancelled": 0}
    bad = _run(
        0, 1, counts=counts, meets_slo=False, steady=False, notes=["unstable: x"], verdict="INVALID", reasons=["y"]
    )
    found = summary([bad, _run(1, 1), _run(2, 1)])
    assert (found.shed, found.faults, found.sent) == (5, 5, 600)
    assert not found.meets_slo
    assert not found.steady
    assert not found.valid
    assert found.notes == ["unstable: x (1 of 3 runs)"]
    assert found.reasons == ["y (1 of 3 runs)"]
    assert found.objective.endswith("missed")


def test_too_few_requests_are_not_a_miss() -> None:
    few = _run(
        0, 1, counts={"ok": 50, "wrong": 0, "shed": 0, "error": 0, "timeout": 0, "cancelled": 50}, meets_slo=False
    )
    assert summary([few]).objective == "p95 <= 100 ms: too few requests to say"


def test_a_report_without_histograms_shows_the_median_over_runs() -> None:
    runs = [_run(number, milliseconds, histogram="") for number, milliseconds in enumerate((1, 2, 9))]
    assert summary(runs).percentile("p95") == pytest.approx(2, rel=0.01)
    assert summary(runs).percentile("p99") is None


def test_a_comparison_looks_at_all_runs_p95() -> None:
    before, after = results_of(*(_run(n, 1) for n in range(3))), results_of(_run(0, 50), _run(1, 1), _run(2, 1))
    (found,) = differences(before, after)
    assert found.p95_ms == (pytest.approx(1, rel=0.01), pytest.approx(50, rel=0.01))
