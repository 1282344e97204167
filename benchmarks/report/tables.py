"""The tables of a report, as rows of text; HTML and Markdown only dress them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bootstrap import Interval, median, middle
from benchmarks.cost import UTILISATIONS, Machine, cost
from benchmarks.measurement import Measurement
from benchmarks.points import Point, grouped, summary
from benchmarks.repeatability import Headline, headlines
from benchmarks.runner import Results


@dataclass(slots=True, frozen=True)
class Row:
    """Cells, and whether the row is struck out (INVALID, or objective missed where that matters)."""

    cells: tuple[str, ...]
    struck: bool = False


@dataclass(slots=True, frozen=True)
class Table:
    """A titled table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


def tables(results: Results) -> list[Table]:
    """All of them, empty ones left out."""
    points = points_of(results)
    found = [
        _headlines(results),
        _rates(results),
        _results(points),
        _overload(results),
        _costs(results.machine, points),
        _server_side(results),
        _cold(results),
        _tenants(results),
        _faults(results),
    ]
    return [table for table in found if table.rows]


def points_of(results: Results) -> list[Point]:
    """Repetitions of each point, summed up."""
    return [summary(group) for group in grouped(results.measurements).values()]


def headlines_of(results: Results) -> list[Headline]:
    """The best point of each workload, protocol and variant."""
    return headlines(list(grouped(results.measurements).values()))


def _headlines(results: Results) -> Table:
    rows = []
    for item in headlines_of(results):
        found = cost(results.machine, item.goodput.value)
        name = " ".join(part for part in (item.workload, item.protocol, item.variant) if part)
        within = "-" if item.within is None else f"± {item.within:.1%}"
        rows.append(
            Row(
                (
                    name, item.label, f"{item.goodput.value:,.0f}", within, milliseconds(item.p50_ms),
                    milliseconds(item.p95_ms), "-" if found is None else f"{found.per_thousand['100%']:.6f}",
                )
            )
        )  # fmt: skip
    columns = ("workload", "load", "goodput/s", "runs agree within", "p50", "p95", "USD per 1,000")
    note = "The most right answers within the objective, among the points that met it in every run."
    return Table("Headlines", columns, tuple(rows), note)


def _rates(results: Results) -> Table:
    """What the searches for the highest rate found, over runs."""
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    for item in results.measurements:
        if item.max_rate is not None:
            found.setdefault((item.workload, item.protocol, item.variant), []).append(item)
    rows = tuple(
        Row(
            (
                " ".join(part for part in key if part), str(group[0].slo),
                with_interval(median([item.max_rate or 0.0 for item in group])), str(len(group)),
            )
        )
        for key, group in found.items()
    )  # fmt: skip
    note = "The highest rate of Poisson arrivals within the objective; 0: not even the lowest that was tried."
    return Table("Highest rates", ("workload", "objective", "requests/s [95 %]", "runs"), rows, note)


def _results(points: Sequence[Point]) -> Table:
    rows = [
        Row(
            (
                point.scenario, point.workload, point.protocol,
                " ".join(part for part in (point.label, point.variant) if part), f"{point.throughput.value:,.0f}",
                with_interval(point.goodput), *(milliseconds(point.percentile(n)) for n in ("p50", "p95", "p99")),
                milliseconds(point.service_p99_ms), str(point.shed), str(point.faults), point.objective,
                "VALID" if point.valid else "INVALID", "; ".join([*point.reasons, *point.notes]),
            ),
            struck=not point.valid,
        )
        for point in points
    ]  # fmt: skip
    columns = (
        "scenario", "workload", "protocol", "load", "answers/s", "goodput/s", "p50", "p95", "p99", "p99 service",
        "shed", "faults", "objective", "verdict", "remarks",
    )  # fmt: skip
    note = (
        "Latency in ms from the intended time (service: from sending), of all runs together; - means too few samples "
        "for that percentile. Goodput counts right answers within the objective; rates are medians over runs, brackets "
        "95 % over runs. Shed and faults are sums. An objective is met if it was in every run, with 99 % confidence."
    )
    return Table("Results", columns, tuple(rows), note)


def _overload(results: Results) -> Table:
    rows = []
    groups = [(key, group) for key, group in grouped(results.measurements).items() if key[0] == "overload"]
    for (_, workload, protocol, label, variant), group in groups:
        point = summary(group)
        shed = point.shed_latency.percentiles if point.shed_latency is not None else {}
        recovered = [item.recovery_s for item in group]
        rows.append(
            Row(
                (
                    workload, protocol, " ".join(part for part in (label, variant) if part),
                    f"{median([item.load['offered'] for item in group]).value:,.0f}", with_interval(point.goodput),
                    f"{point.shed / max(1, point.sent):.1%}",
                    *(milliseconds(shed.get(name)) for name in ("p50", "p99")), milliseconds(point.percentile("p99")),
                    _recovered(recovered) if "recovery" in label else "",
                ),
                struck=not point.valid,
            )
        )  # fmt: skip
    columns = (
        "workload", "protocol", "load", "offered/s", "goodput/s", "refused", "refusal p50", "refusal p99", "answer p99",
        "recovered after",
    )  # fmt: skip
    note = (
        "Refused: share of all requests that got 429 or 503, and how long that took, ms. Recovered: from the end of "
        "the overload until the objective was met again and stayed met."
    )
    return Table("Overload", columns, tuple(rows), note)


def _recovered(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"not within the run ({len(values) - len(known)} of {len(values)})"
    return f"{median(known).value:g} s"


def _costs(machine: Machine, points: Sequence[Point]) -> Table:
    rows = []
    for point in points:
        if point.label.startswith("recovery") or point.scenario in ("noise_floor", "cold_start"):
            continue
        found = cost(machine, point.goodput.value)
        if found is None:
            continue
        passed = point.valid and point.meets_slo
        prices = [f"{found.per_thousand[f'{share:.0%}']:.6f}" for share in UTILISATIONS]
        rows.append(
            Row(
                (
                    point.workload, point.protocol, point.scenario,
                    " ".join(part for part in (point.label, point.variant) if part), f"{point.goodput.value:,.0f}",
                    *prices, f"{found.redundant['100%']:.6f}",
                    "-" if found.break_even is None else f"{found.break_even:.0%}", "yes" if passed else "no",
                ),
                struck=not passed,
            )
        )  # fmt: skip
    columns = (
        "workload", "protocol", "scenario", "load", "goodput/s", "100 %", "60 %", "30 %", "10 %", "N+1, 100 %",
        "break-even", "objective met",
    )  # fmt: skip
    note = (
        f"USD per 1,000 right answers in time, at that utilisation, on {machine.name}: {machine.per_hour} USD/h "
        f"({machine.source}, {machine.date}). {_beside(machine)} N+1: {machine.peak_machines} at the peak and one "
        "spare. Struck out: the objective was missed or the run is INVALID."
    )
    return Table("Cost", columns, tuple(rows), note)


def _beside(machine: Machine) -> str:
    """What the price holds beside the machine, and what break-even compares with."""
    held = "Database, load balancer, egress and storage of usage records are not in it: the price list names none."
    if machine.beside_per_hour or machine.per_thousand_records:
        held = (
            f"Database, load balancer and such: {machine.beside_per_hour} USD/h; egress and storage: "
            f"{machine.per_thousand_records} USD per 1,000."
        )
    other = machine.alternative_per_thousand
    return held if other is None else f"{held} Break-even is with {other} USD per 1,000 elsewhere."


def _server_side(results: Results) -> Table:
    rows = []
    for item in results.measurements:
        if item.scenario == "noise_floor" or (item.mean_batch is None and not item.cpu_us_per_request):
            continue
        triton = item.triton_ms
        cpu = ", ".join(f"{name} {value:,.0f}" for name, value in sorted(item.cpu_us_per_request.items()) if value >= 1)
        usage = "-" if item.usage_records is None else str(item.usage_records)
        rows.append(
            Row(
                (
                    f"{item.scenario} {item.workload} {item.protocol}", f"{item.label} {item.variant}".strip(),
                    "-" if item.mean_batch is None else f"{item.mean_batch:.1f}",
                    *(milliseconds(triton.get(name)) for name in ("queue", "compute_infer")),
                    ", ".join(f"{name} {value:.3g}" for name, value in item.gateway_ms.items()) or "-", cpu,
                    "-" if item.rss_bytes is None else f"{item.rss_bytes / 2**20:,.0f}",
                    "-" if item.peak_rss_bytes is None else f"{item.peak_rss_bytes / 2**20:,.0f}",
                    "-" if item.inferences_per_s is None else f"{item.inferences_per_s:,.0f}",
                    f"{_mebibytes(item.bytes_out_per_s)} / {_mebibytes(item.bytes_in_per_s)}",
                    f"{item.load['generator_cpu_share']:.0%}" if "generator_cpu_share" in item.load else "-",
                    "-" if item.foreign_cpu_share is None else f"{item.foreign_cpu_share:.0%}", usage,
                ),
                struck=not item.valid,
            )
        )  # fmt: skip
    columns = (
        "run", "load", "mean batch", "queue ms", "compute ms", "gateway stages, ms", "CPU µs per request", "memory MiB",
        "peak MiB", "inferences/s", "MiB/s out / in", "generator, of a core", "others, of all cores", "usage records",
    )  # fmt: skip
    return Table("Inside the server", columns, tuple(rows))


def _mebibytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.3g}"


def _cold(results: Results) -> Table:
    rows = [
        Row(
            (
                item.workload, item.protocol, str(item.run + 1), milliseconds(item.first_answers_ms[0]),
                milliseconds(item.first_answers_ms[1]), milliseconds(middle(item.first_answers_ms[2:])),
            )
        )
        for item in results.measurements
        if len(item.first_answers_ms) > 2
    ]  # fmt: skip
    columns = ("workload", "protocol", "run", "first answer ms", "second", "median of the others")
    return Table("Cold start", columns, tuple(rows))


def _tenants(results: Results) -> Table:
    rows = [
        Row(
            (
                item.workload, item.label, name, f"{found.requests_per_s:,.0f}", f"{found.goodput:,.0f}",
                str(found.shed), str(found.faults),
                *(milliseconds(found.latency.percentiles[p]) for p in ("p50", "p95", "p99")),
            ),
            struck=not item.valid,
        )
        for item in results.measurements
        for name, found in item.tenants.items()
    ]  # fmt: skip
    columns = ("workload", "load", "tenant", "requests/s", "goodput/s", "shed", "faults", "p50", "p95", "p99")
    return Table("Tenants", columns, tuple(rows))


def _faults(results: Results) -> Table:
    counted: dict[str, int] = {}
    for item in results.measurements:
        for fault, count in item.faults.items():
            counted[fault] = counted.get(fault, 0) + count
    rows = [Row((str(count), fault)) for fault, count in sorted(counted.items(), key=lambda pair: -pair[1])]
    return Table("Faults", ("times", "what"), tuple(rows))


def milliseconds(value: Any) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def with_interval(found: Interval) -> str:
    """A rate with its interval, where there is one."""
    ends = f" [{found.low:,.0f}, {found.high:,.0f}]" if found.low is not None and found.high is not None else ""
    return f"{found.value:,.0f}{ends}"
