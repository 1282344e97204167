"""A report says what was measured, draws only what is VALID, and prices only what met its objective."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import runner
from benchmarks.compare import differences
from benchmarks.report.plots import draw
from benchmarks.report.tables import Table, points, tables
from benchmarks.report.write import write
from benchmarks.runner import Results
from tests.benchmarks.samples import measurement, results_of
from tidegate.commands.bench import app


def _named(title: str, results: Results) -> Table:
    return next(table for table in tables(results) if table.title == title)


def test_the_report_is_written_whole_and_can_be_read_back(tmp_path: Path) -> None:
    results = results_of(*(measurement(users, 100.0 * users) for users in (1, 8, 32)))
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
    found = _named("Results", results_of(measurement(8, 800.0)))
    row, columns = found.rows[0], found.columns
    assert row.cells[columns.index("p95")] == "8"
    assert row.cells[columns.index("p99")] == "-"  # 200 samples


def test_invalid_points_are_struck_out_and_not_drawn() -> None:
    bad = measurement(8, 9e9, verdict="INVALID", reasons=["schedule lag"])
    results = results_of(measurement(1, 100.0), bad)
    found = _named("Results", results)
    assert [row.struck for row in found.rows] == [False, True]
    assert "schedule lag" in found.rows[1].cells[-1]
    assert draw(results) == draw(results_of(measurement(1, 100.0)))


def test_a_run_that_missed_its_objective_is_struck_out_of_the_costs() -> None:
    cheap = measurement(64, 9000.0, meets_slo=False)
    costs = next(table for table in tables(results_of(measurement(1, 100.0), cheap)) if table.title == "Cost")
    assert [row.struck for row in costs.rows] == [False, True]
    assert costs.rows[0].cells[5] == f"{0.1 / 3600 / 100 * 1000:.6f}"


@pytest.mark.parametrize(("factor", "word"), [(1.5, "better"), (0.5, "worse"), (1.0, "no difference")])
def test_reports_are_compared_point_by_point(factor: float, word: str) -> None:
    before = results_of(*(measurement(8, 100.0 + run, run=run) for run in range(5)))
    after = results_of(*(measurement(8, (100.0 + run) * factor, run=run) for run in range(5)))
    (found,) = differences(before, after)
    assert found.word == word


def test_the_page_can_be_made_again_from_the_data(tmp_path: Path) -> None:
    page = write(results_of(*(measurement(users, 100.0 * users) for users in (1, 8))), tmp_path)
    first = page.read_bytes()
    page.unlink()
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert page.read_bytes() == first


def test_an_invalid_point_is_not_compared() -> None:
    before = results_of(measurement(8, 100.0))
    after = results_of(measurement(8, 100.0, verdict="INVALID"))
    assert differences(before, after)[0].word == "INVALID"


def test_repetitions_are_grouped_though_each_run_derives_its_rate() -> None:
    hot = [measurement(1, 100.0, run=run, label=f"{400 + run}/s, hot key") for run in range(3)]
    parts = [measurement(1, 100.0, label=f"571/s, part {number}") for number in (1, 2)]
    assert [len(group) for group in points([*hot, *parts]).values()] == [3, 1, 1]
