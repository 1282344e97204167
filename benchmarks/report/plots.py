"""The plots of a report, as inline SVG. Only VALID measurements are drawn."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.bootstrap import middle
from benchmarks.cost import cost
from benchmarks.measurement import Measurement
from benchmarks.points import grouped
from benchmarks.repeatability import middle_percentile
from benchmarks.runner import Results

SIZE = (7.2, 4.2)
CLOSED = ("closed_sweep", "single_stream", "offline")
_plain = FuncFormatter(lambda value, _: f"{value:,.6g}")


def draw(results: Results) -> dict[str, str]:
    """SVG by title; a plot without data is left out."""
    valid = [item for item in results.measurements if item.valid and any(item.counts.values())]
    plots: dict[str, str] = {}
    for title, plot in PLOTS.items():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        if plot(axes, valid, results):
            axes.set_title(title)
            axes.grid(visible=True, alpha=0.3)
            plots[title] = _svg(figure, title)
    return plots


def _svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):  # the same data gives the same bytes, and no two plots share an id
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def series(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Grouped by workload, protocol and variant."""
    groups: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        parts = [
            measurement.workload,
            measurement.protocol if measurement.protocol != "http" else "",
            measurement.variant,
        ]
        groups[" ".join(part for part in parts if part)].append(measurement)
    return dict(groups)


def by_users(group: Sequence[Measurement]) -> dict[int, list[Measurement]]:
    """The repetitions of each number of users, fewest first."""
    found: dict[int, list[Measurement]] = defaultdict(list)
    for item in group:
        found[int(item.load["users"])].append(item)
    return dict(sorted(found.items()))


def _latency_against_throughput(axes: Axes, valid: Sequence[Measurement], _results: Results) -> bool:
    drawn = False
    for name, group in series([item for item in valid if item.scenario in CLOSED]).items():
        found = [
            (middle([item.throughput for item in runs]), middle_percentile(runs, "p95"))
            for runs in by_users(group).values()
        ]
        points = [(x, y) for x, y in found if y is not None]
        if len(points) > 1:
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
            drawn = True
    axes.set_xlabel("answers a second; one point for each number of users")
    axes.set_ylabel("p95 latency, ms")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        readable(axis)
    _legend(axes, drawn=drawn)
    return drawn


def _spectrum(axes: Axes, valid: Sequence[Measurement], _results: Results) -> bool:
    drawn = False
    chosen: dict[str, Measurement] = {}
    for item in valid:
        if item.load["model"] == "open" or item.scenario == "single_stream":
            chosen[f"{item.workload} {item.scenario} {item.label} {item.variant}".strip()] = item
    for item in valid if not chosen else ():
        if item.scenario == "closed_sweep":  # the last, with most users
            chosen[f"{item.workload} {item.protocol} {item.variant}".strip()] = item
    for name, item in list(chosen.items())[-6:]:
        points = [(float(key[1:]), value) for key, value in item.latency.percentiles.items() if value is not None]
        if len(points) > 2:
            axes.plot([1 / (1 - p / 100) for p, _ in points], [value for _, value in points], marker=".", label=name)
            drawn = True
    axes.set_xscale("log")
    axes.set_xticks([2, 10, 20, 100, 1000], ["p50", "p90", "p95", "p99", "p99.9"])
    axes.minorticks_off()
    axes.set_yscale("log")
    readable(axes.yaxis)
    axes.set_ylabel("latency from the intended time, ms")
    _legend(axes, drawn=drawn)
    return drawn


def _timeline(axes: Axes, valid: Sequence[Measurement], _results: Results) -> bool:
    first = [item for item in valid if item.run == 0 and item.scenario != "noise_floor" and item.throughput > 0]
    longest = sorted(first, key=lambda item: -item.duration_s)[:6]
    for item in longest:
        label = f"{item.workload} {item.scenario} {item.label}"
        axes.plot(
            [window.start_s for window in item.windows], [window.answers_per_s for window in item.windows], label=label
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("answers a second")
    axes.set_yscale("log")
    readable(axes.yaxis)
    _legend(axes, drawn=bool(longest))
    return bool(longest)


def _batches(axes: Axes, valid: Sequence[Measurement], _results: Results) -> bool:
    drawn = False
    for name, group in series([item for item in valid if item.scenario in CLOSED and item.mean_batch]).items():
        points = [(users, middle([item.mean_batch or 0.0 for item in runs])) for users, runs in by_users(group).items()]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        drawn = True
    axes.set_xlabel("users")
    axes.set_ylabel("inferences per execution in Triton")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_plain)
    _legend(axes, drawn=drawn)
    return drawn


def _overload(axes: Axes, valid: Sequence[Measurement], _results: Results) -> bool:
    drawn = False
    for name, group in series([item for item in valid if item.scenario == "overload" and "peak" in item.label]).items():
        runs: dict[str, list[Measurement]] = defaultdict(list)
        for item in group:
            if not item.label.startswith("recovery"):
                runs[item.label].append(item)
        points = sorted(
            (middle([item.load["offered"] for item in found]), middle([item.goodput for item in found]))
            for found in runs.values()
        )
        if points:
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
            drawn = True
    axes.set_xlabel("offered, requests a second")
    axes.set_ylabel("right answers in time, a second")
    axes.set_ylim(bottom=0)
    _legend(axes, drawn=drawn)
    return drawn


def _cost(axes: Axes, valid: Sequence[Measurement], results: Results) -> bool:
    best: dict[str, float] = {}
    for name, group in series(valid).items():
        points = [runs for runs in grouped(group).values() if all(item.meets_slo for item in runs)]
        best[name] = max((middle([item.goodput for item in runs]) for runs in points), default=0.0)
    bars = {name: found for name, goodput in best.items() if (found := cost(results.machine, goodput)) is not None}
    if not bars:
        return False
    width = 0.2
    for number, utilisation in enumerate(("100%", "60%", "30%", "10%")):
        heights = [found.per_thousand[utilisation] for found in bars.values()]
        axes.bar(
            [index + (number - 1.5) * width for index in range(len(bars))], heights, width, label=f"{utilisation} used"
        )
    axes.set_xticks(range(len(bars)), list(bars), rotation=20, ha="right")
    axes.set_yscale("log")
    axes.set_ylabel("USD per 1,000 requests")
    _legend(axes, drawn=True)
    return True


def readable(axis: Axis) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5, 10, …"""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(_plain)
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, *, drawn: bool) -> None:
    if drawn:
        axes.legend(fontsize=8)


PLOTS: Mapping[str, Callable[[Axes, Sequence[Measurement], Results], bool]] = MappingProxyType(
    {
        "Latency against throughput": _latency_against_throughput,
        "Percentile spectrum": _spectrum,
        "Timeline": _timeline,
        "Batch sizes": _batches,
        "Overload": _overload,
        "Cost at the objective": _cost,
    }
)
