"""Reports of ``tidegate bench``: made by suites, compared, and turned into pages; imported when a command runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import compare as reports
from benchmarks import cost, runner
from benchmarks import suite as suites
from benchmarks.bootstrap import Interval
from benchmarks.recording import as_dict
from benchmarks.repeatability import doubts, noise_floors
from benchmarks.report import tables
from benchmarks.report import write as report
from benchmarks.stack import StackError
from tidegate.benching import Where, run_async
from tidegate.console import err, fail, print_json, print_table

RESULTS = Path("benchmarks") / "results"
_SHORT = {
    "Headlines": ("load", "goodput/s", "runs agree within", "p50", "p95", "USD per 1,000"),
    "Results": ("goodput/s", "p50", "p95", "shed", "faults", "verdict"),
    "Cost": ("goodput/s", "100 %", "30 %", "objective met"),
}
"""The columns that fit a terminal; the report has them all."""


@dataclass(slots=True, frozen=True, kw_only=True)
class RunOptions:
    """Options of ``tidegate bench run``."""

    suite: str
    where: Where
    tenant_keys: tuple[str, ...]
    out: Path | None
    duration: float | None
    runs: int | None
    quick: bool
    calibrate: bool
    prices: Path | None
    machine: str
    seed: int
    repository: Path
    json_: bool
    engine: suites.Engine | None = None
    """What makes closed sweeps, in place of what the suite says."""


def run_suite(options: RunOptions) -> None:
    """``tidegate bench run``."""
    try:
        chosen = suites.shortened(
            suites.read(options.suite), duration_s=options.duration, runs=options.runs, quick=options.quick
        )
        if options.engine is not None:
            chosen = suites.with_engine(chosen, options.engine)
        priced = cost.machine(cost.read_prices(options.prices), options.machine)
    except (suites.SuiteError, cost.PricesError) as error:
        fail(str(error), code=2)
    where = options.where
    if where.gateway is not None and len(chosen.variants) > 1:
        fail("this suite changes the stack's settings, so it starts its own: leave out --url", code=2)
    shorter = options.quick or options.duration is not None  # a rehearsal does not overwrite what was published
    folder = options.out or RESULTS / ("local" if shorter else "") / chosen.name
    grpc = f"grpc://{where.gateway_grpc.removeprefix('grpc://')}" if where.gateway_grpc else None
    plan = runner.Plan(
        chosen, folder, options.seed, priced, where.gateway, grpc, where.key, list(options.tenant_keys),
        options.repository, options.calibrate, say=lambda text: err.print(f"  {text}", highlight=False, markup=False),
    )  # fmt: skip
    try:
        results = run_async(runner.run(plan))
    except StackError as error:
        fail(str(error))
    page = report.write(results, folder)
    if options.json_:
        print_json(as_dict(results))
    else:
        for table in tables.tables(results):
            if table.title in _SHORT:
                _print_short(table)
    reasons = doubts(tables.headlines_of(results), noise_floors(results.measurements))
    for reason in [*results.noise, *reasons]:
        err.print(f"[yellow]not for headlines:[/] {reason}", highlight=False)
    err.print(f"report: {page}", highlight=False)
    if not results.measurements:
        fail("nothing could be measured: " + "; ".join(results.skipped))
    if not any(item.valid for item in results.measurements):
        fail("every measurement is INVALID")


def _print_short(table: tables.Table) -> None:
    wanted = [table.columns.index(name) for name in _SHORT[table.title]]
    names = [
        table.columns.index(name) for name in ("scenario", "workload", "protocol", "load") if name in table.columns
    ]
    names = [number for number in names if number not in wanted]
    rows = [[" ".join(row.cells[n] for n in names), *(row.cells[n] for n in wanted)] for row in table.rows]
    print_table(table.title, ["run", *(table.columns[number] for number in wanted)], rows)


def html(folder: Path) -> None:
    """``tidegate bench report``."""
    try:
        results = runner.load(folder)
    except (OSError, ValueError) as error:
        fail(str(error), code=2)
    err.print(f"report: {report.write_html(results, folder)}", highlight=False)


def compare_reports(before: Path, after: Path, *, json_: bool) -> None:
    """``tidegate bench compare``."""
    try:
        found = reports.differences(runner.load(before), runner.load(after))
    except (OSError, ValueError) as error:
        fail(str(error), code=2)
    if not found:
        fail("the reports have no point in common")
    if json_:
        print_json(as_dict(found))
        return
    rows = [
        [
            item.point, f"{item.goodput[0]:,.0f}", f"{item.goodput[1]:,.0f}", _percent(item.change),
            f"{tables.milliseconds(item.p95_ms[0])} → {tables.milliseconds(item.p95_ms[1])}", item.word,
        ]
        for item in found
    ]  # fmt: skip
    print_table("Goodput before and after", ["point", "before/s", "after/s", "change", "p95 ms", "verdict"], rows)


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    text = f"{interval.value:+.1%}"
    return (
        text if interval.low is None or interval.high is None else f"{text} [{interval.low:+.1%}, {interval.high:+.1%}]"
    )
