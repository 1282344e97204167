"""The tables of a report, as rows of text; HTML and Markdown only dress them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bootstrap import median
from benchmarks.cost import UTILISATIONS, cost
from benchmarks.measurement import Measurement
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
    found = [
        _headlines(results),
        _results(results),
        _costs(results),
        _server_side(results),
        _tenants(results),
        _faults(results),
    ]
    return [table for table in found if table.rows]


def points(measurements: Sequence[Measurement]) -> dict[tuple[str, ...], list[Measurement]]:
    """Repetitions of one point, by scenario, workload, protocol, load and variant.

    Where a run derives its rate from the peak it found (``412/s, hot key``), the rate is no part of the name.
    """
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for item in measurements:
        label = item.label.split("/s, ", 1)[-1]
        groups.setdefault((item.scenario, item.workload, item.protocol, label, item.variant), []).append(item)
    return groups


def headlines_of(results: Results) -> list[Headline]:
    """The best point of each workload, protocol and variant."""
    return headlines(list(points(results.measurements).values()))


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


def _results(results: Results) -> Table:
    rows = []
    for (scenario, workload, protocol, label, variant), group in points(results.measurements).items():
        item = group[-1]
        goodput = median([one.goodput for one in group])
        percentiles, service = item.latency.percentiles, item.service.percentiles
        faults = item.counts["wrong"] + item.counts["error"] + item.counts["timeout"]
        valid = all(one.valid for one in group)
        remarks = [*dict.fromkeys(reason for one in group for reason in one.reasons), *item.notes]
        rows.append(
            Row(
                (
                    scenario, workload, protocol, " ".join(part for part in (label, variant) if part),
                    f"{item.throughput:,.0f}",
                    f"{goodput.value:,.0f}" + (f" [{goodput.low:,.0f}, {goodput.high:,.0f}]" if goodput.low else ""),
                    *(milliseconds(percentiles[name]) for name in ("p50", "p95", "p99")),
                    milliseconds(service["p99"]), str(item.counts["shed"]), str(faults),
                    f"{item.slo}: {'met' if item.meets_slo else 'missed'}",
                    "VALID" if valid else "INVALID", "; ".join(remarks),
                ),
                struck=not valid,
            )
        )  # fmt: skip
    columns = (
        "scenario", "workload", "protocol", "load", "answers/s", "goodput/s", "p50", "p95", "p99", "p99 service",
        "shed", "faults", "objective", "verdict", "remarks",
    )  # fmt: skip
    note = (
        "Latency in ms from the intended time (service: from sending); - means too few samples for that percentile. "
        "Goodput counts right answers within the objective; brackets are 95 % over runs."
    )
    return Table("Results", columns, tuple(rows), note)


def _costs(results: Results) -> Table:
    machine = results.machine
    rows = []
    for (scenario, workload, protocol, label, variant), group in points(results.measurements).items():
        if group[-1].label.startswith("recovery") or scenario == "noise_floor":
            continue
        goodput = median([item.goodput for item in group]).value
        found = cost(machine, goodput)
        if found is None:
            continue
        passed = all(item.valid and item.meets_slo for item in group)
        prices = [f"{found.per_thousand[f'{share:.0%}']:.6f}" for share in UTILISATIONS]
        name = " ".join(part for part in (label, variant) if part)
        state = "yes" if passed else "no"
        rows.append(Row((workload, protocol, scenario, name, f"{goodput:,.0f}", *prices, state), struck=not passed))
    columns = (
        "workload",
        "protocol",
        "scenario",
        "load",
        "goodput/s",
        "100 %",
        "60 %",
        "30 %",
        "10 %",
        "objective met",
    )
    note = (
        f"USD per 1,000 right answers in time, at that utilisation, on {machine.name}: {machine.per_hour} USD/h "
        f"({machine.source}, {machine.date}). Struck out: the objective was missed or the run is INVALID. "
        "A spare machine (N+1) doubles it."
    )
    return Table("Cost", columns, tuple(rows), note)


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
                    *(milliseconds(triton.get(name)) for name in ("queue", "compute_infer")), cpu,
                    "-" if item.rss_bytes is None else f"{item.rss_bytes / 2**20:,.0f}",
                    f"{item.load['generator_cpu_share']:.0%}" if "generator_cpu_share" in item.load else "-",
                    "-" if item.foreign_cpu_share is None else f"{item.foreign_cpu_share:.0%}", usage,
                ),
                struck=not item.valid,
            )
        )  # fmt: skip
    columns = (
        "run",
        "load",
        "mean batch",
        "queue ms",
        "compute ms",
        "CPU µs per request",
        "memory MiB",
        "generator, of a core",
        "others, of all cores",
        "usage records",
    )
    return Table("Inside the server", columns, tuple(rows))


def _tenants(results: Results) -> Table:
    rows = [
        Row(
            (
                item.workload,
                name,
                str(latency.samples),
                *(milliseconds(latency.percentiles[p]) for p in ("p50", "p95", "p99")),
            )
        )
        for item in results.measurements
        for name, latency in item.tenants.items()
    ]
    return Table("Tenants", ("workload", "tenant", "answers", "p50", "p95", "p99"), tuple(rows))


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
