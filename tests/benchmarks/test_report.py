"""A report says what was measured, draws only what is VALID, and prices only what met its objective."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runner
from benchmarks.compare import differences
from benchmarks.cost import Machine
from benchmarks.measurement import Measurement, Window
from benchmarks.recording import Latency, histogram_of
from benchmarks.report.plots import draw
from benchmarks.report.tables import points, tables
from benchmarks.report.write import write
from benchmarks.runner import Results
from benchmarks.suite import Scenario, Slo, Suite

ENVIRONMENT: dict[str, Any] = {
    "utc": "2026-01-01T00:00:00Z",
    "command": "tidegate bench run <quick>",
    "machine": {"processor": "P", "cores_usable": 2, "memory_bytes": 2**30, "kernel": "6", "gpu": []},
    "software": {"python": "3.11"},
    "git": {"commit": "", "dirty": False},
    "network": {"load_generator": "same host, loopback"},
}


def _measurement(users: int, goodput: float, *, run: int = 0, **changes: Any) -> Measurement:
    latency = Latency.of(histogram_of([int(users * 1000)] * 200))
    values: dict[str, Any] = {
        "scenario": "closed_sweep", "workload": "identity", "protocol": "http", "label": f"{users} users", "run": run,
        "load": {"model": "closed", "users": users}, "duration_s": 6.0, "verdict": "VALID", "reasons": [],
        "counts": {"ok": 200, "wrong": 0, "shed": 0, "error": 0, "timeout": 0, "cancelled": 0},
        "statuses": {"200": 200}, "faults": {}, "throughput": goodput, "goodput": goodput, "slo": Slo(100.0),
        "meets_slo": True, "latency": latency, "service": latency, "shed_latency": Latency.of(histogram_of([])),
        "bytes_in": 1, "bytes_out": 1, "steady": True, "mean_batch": 1.5,
        "windows": [Window(float(n), goodput, 1.0, 2.0) for n in range(6)],
    }  # fmt: skip
    return Measurement(**{**values, **changes})


def _results(*measurements: Measurement) -> Results:
    machine = Machine("a machine", 0.1, "https://example.org", dt.date(2026, 1, 1))
    suite = Suite("A <suite>", (Scenario("closed_sweep", "identity"),))
    return Results(suite, 1, machine, ENVIRONMENT, ["the machine was busy"], list(measurements), ["soak: no time"])


def test_the_report_is_written_whole_and_can_be_read_back(tmp_path: Path) -> None:
    results = _results(*(_measurement(users, 100.0 * users) for users in (1, 8, 32)))
    page = write(results, tmp_path).read_text()
    assert page.count("<svg") >= 4
    assert "A &lt;suite&gt;" in page
    assert "Not for headlines: the machine was busy" in page
    assert "Skipped: soak: no time" in page
    assert not re.search(r"<(script|link|img|iframe)\b", page)  # nothing is fetched: the page is whole
    assert "| closed_sweep | identity | http | 8 users |" in (tmp_path / "report.md").read_text()
    again = runner.load(tmp_path)
    assert [item.goodput for item in again.measurements] == [100.0, 800.0, 3200.0]


def test_percentiles_below_their_floor_are_dashes() -> None:
    row = tables(_results(_measurement(8, 800.0)))[0].rows[0]
    columns = tables(_results(_measurement(8, 800.0)))[0].columns
    assert row.cells[columns.index("p95")] == "8"
    assert row.cells[columns.index("p99")] == "-"  # 200 samples


def test_invalid_points_are_struck_out_and_not_drawn() -> None:
    bad = _measurement(8, 9e9, verdict="INVALID", reasons=["schedule lag"])
    results = _results(_measurement(1, 100.0), bad)
    found = tables(results)[0]
    assert [row.struck for row in found.rows] == [False, True]
    assert "schedule lag" in found.rows[1].cells[-1]
    assert draw(results) == draw(_results(_measurement(1, 100.0)))


def test_a_run_that_missed_its_objective_is_struck_out_of_the_costs() -> None:
    cheap = _measurement(64, 9000.0, meets_slo=False)
    costs = next(table for table in tables(_results(_measurement(1, 100.0), cheap)) if table.title == "Cost")
    assert [row.struck for row in costs.rows] == [False, True]
    assert costs.rows[0].cells[5] == f"{0.1 / 3600 / 100 * 1000:.6f}"


@pytest.mark.parametrize(("factor", "word"), [(1.5, "better"), (0.5, "worse"), (1.0, "no difference")])
def test_reports_are_compared_point_by_point(factor: float, word: str) -> None:
    before = _results(*(_measurement(8, 100.0 + run, run=run) for run in range(5)))
    after = _results(*(_measurement(8, (100.0 + run) * factor, run=run) for run in range(5)))
    (found,) = differences(before, after)
    assert found.word == word


def test_an_invalid_point_is_not_compared() -> None:
    before = _results(_measurement(8, 100.0))
    after = _results(_measurement(8, 100.0, verdict="INVALID"))
    assert differences(before, after)[0].word == "INVALID"


def test_repetitions_are_grouped_though_each_run_derives_its_rate() -> None:
    hot = [_measurement(1, 100.0, run=run, label=f"{400 + run}/s, hot key") for run in range(3)]
    parts = [_measurement(1, 100.0, label=f"571/s, part {number}") for number in (1, 2)]
    assert [len(group) for group in points([*hot, *parts]).values()] == [3, 1, 1]
