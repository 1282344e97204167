"""A report says what was measured, draws only what is VALID, and prices only what met its objective."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from benchmarks import runner
from benchmarks.calibration import Calibration
from benchmarks.compare import differences
from benchmarks.recording import Latency, encoded, histogram_of
from benchmarks.report.plots import draw
from benchmarks.report.tables import Table, tables
from benchmarks.report.write import write
from benchmarks.runner import Results
from tests.benchmarks.samples import measurement, results_of
from tidegate.commands.bench import app

COST = "Cost at the objective"


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


def test_a_report_of_an_overload_shows_refusals_and_recovery() -> None:
    open_loop = {"model": "open", "offered": 800.0}
    refused = Latency.of(histogram_of([3000] * 500))
    loaded = measurement(
        1, 90.0, scenario="overload", label="4x peak", load=open_loop, shed_latency=refused,
        shed_histogram=encoded(histogram_of([3000] * 500)),
        counts={"ok": 500, "wrong": 0, "shed": 500, "error": 0, "timeout": 0, "cancelled": 0},
    )  # fmt: skip
    back, never = (
        measurement(1, 90.0, scenario="overload", label=f"recovery after {n}x peak", load=open_loop, recovery_s=seconds)
        for n, seconds in ((4, 2.5), (8, None))
    )
    found = _named("Overload", results_of(loaded, back, never))
    rows = [dict(zip(found.columns, row.cells, strict=True)) for row in found.rows]
    assert (rows[0]["refused"], rows[0]["refusal p50"], rows[0]["refusal p99"]) == ("50.0%", "3", "3")
    assert [row["recovered after"] for row in rows] == ["", "2.5 s", "not within the run (1 of 1)"]


def test_the_highest_rates_of_all_runs_are_one_row_with_an_interval() -> None:
    found = [
        measurement(1, rate, scenario="server", label=f"{rate:.0f}/s, highest rate", run=run, max_rate=rate)
        for run, rate in enumerate((100.0, 110.0, 120.0))
    ]
    tried = measurement(1, 50.0, scenario="server", label="50/s")
    table = _named("Highest rates", results_of(*found, tried))
    assert [row.cells for row in table.rows] == [("identity http", "p95 <= 100 ms", "110 [100, 120]", "3")]


def test_the_plot_of_costs_takes_the_middle_run_not_the_luckiest() -> None:
    usual = [measurement(8, 100.0, run=run) for run in range(4)]
    lucky = [*usual, measurement(8, 9000.0, run=4)]
    assert draw(results_of(*usual))[COST] == draw(results_of(*lucky))[COST]


def test_what_is_paid_beside_the_machine_is_said_to_be_missing_or_is_counted() -> None:
    bare = results_of(measurement(1, 100.0))
    assert "the price list names none" in _named("Cost", bare).note
    whole = results_of(measurement(1, 100.0))
    whole.machine = msgspec.structs.replace(
        whole.machine, beside_per_hour=0.1, per_thousand_records=0.001, peak_machines=4, alternative_per_thousand=0.002
    )
    table = _named("Cost", whole)
    cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
    hourly = (0.1 + 0.1) / 3600 / 100 * 1000
    assert cells["100 %"] == f"{hourly + 0.001:.6f}"
    assert cells["30 %"] == f"{hourly / 0.3 + 0.001:.6f}"
    assert cells["N+1, 100 %"] == f"{hourly * 5 / 4 + 0.001:.6f}"
    assert cells["break-even"] == f"{hourly / 0.001:.0%}"
    assert "0.1 USD/h" in table.note


def test_an_invalid_calibration_is_among_the_warnings(tmp_path: Path) -> None:
    results = results_of(measurement(1, 100.0))
    results.calibration = Calibration(100.0, 150.0, 9.0, 300.0, 200.0, {"p99": 9.0}, 3, "INVALID", ["it lags"])
    page = write(results, tmp_path).read_text()
    assert "calibration is INVALID: it lags" in page
    assert "calibration is INVALID: it lags" in (tmp_path / "report.md").read_text()


def test_a_cold_start_shows_its_first_answers() -> None:
    table = _named("Cold start", results_of(measurement(1, 9.0, scenario="cold_start", first_answers_ms=[90, 9, 3, 1])))
    assert table.rows[0].cells[-3:] == ("90", "9", "2")
