"""Writes the benchmarks in README.md and docs/06-benchmarks.md: ``python scripts/benchmarks_page.py``.

Tables and plots come from the reports of ``tidegate bench run headline`` and ``python -m benchmarks.peers run``;
with ``--check`` nothing is written, and the exit code is 1 if the pages are not what the reports say. A report that
was made with changes that no commit has is shown, and says so.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import runner
from benchmarks.bootstrap import middle
from benchmarks.cost import cost, machine, read_prices
from benchmarks.measurement import Measurement
from benchmarks.peers.summary import OWN, PeerResult, incomparable, number, ratios, table, verdicts
from benchmarks.repeatability import doubts, middle_percentile, noise_floors
from benchmarks.report.plots import readable
from benchmarks.report.tables import headlines_of, milliseconds
from benchmarks.runner import Results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
INK = {
    "tidegate": "#0b6e75", "triton": "#8a939c", "fastapi": "#c8553d", "litserve": "#7a5ea8", "bentoml": "#d19a2a",
    "mlserver": "#4c7fb8", "ray": "#6d8b3c",
}  # fmt: skip


def main() -> int:
    """Rewrite pages and plots; 1 with ``--check`` if the pages were out of date."""
    report = json.loads((RESULTS / "peers" / "report.json").read_text())
    peers = msgspec.convert(report["results"], list[PeerResult])
    headline = runner.load(RESULTS / "headline")
    pages = {
        ROOT / "README.md": readme(report, peers, headline),
        ROOT / "docs" / "06-benchmarks.md": "\n".join(
            [*table(peers), "", *(f"- {line}" for line in verdicts(peers)), *_warnings(report["noise"])]
        ),
    }
    reasons: list[str] = []
    for path, text in pages.items():
        old = path.read_text(encoding="utf-8")
        marks = r"(<!-- benchmarks: [^>]*-->).*?(<!-- /benchmarks -->)"
        new = re.sub(marks, lambda found, text=text: f"{found[1]}\n{text}\n{found[2]}", old, flags=re.DOTALL)  # type: ignore[misc]
        if "--check" not in sys.argv[1:]:
            path.write_text(new, encoding="utf-8")
        elif new != old:
            reasons.append(f"{path.relative_to(ROOT)} is not what the reports say")
    for reason in reasons:
        print(reason, file=sys.stderr)
    if "--check" in sys.argv[1:]:
        return int(bool(reasons))
    _draw(IMAGES / "goodput.svg", peers, goodput, "Right answers a second, within the objective")
    _draw(IMAGES / "latency.svg", peers, latency, "p95 latency against throughput, by number of users")
    return 0


def uncommitted(environments: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes published figures hard to make again: the code that made them is in no commit."""
    return [
        f"the report {name} was made with local changes beside commit {where['git']['commit'][:12]}"
        for name, where in environments.items()
        if where["git"]["dirty"]
    ]


def commands(report: Mapping[str, Any], headline: Results) -> list[str]:
    """What was typed to make the reports, as they recorded it."""
    peers = [name for name in dict.fromkeys(item["server"] for item in report["results"]) if name not in OWN]
    return [
        f"python -m benchmarks.peers install {' '.join(sorted(peers))}",
        *report.get("tuning", {"commands": ["python -m benchmarks.peers tune"]})["commands"],
        report["environment"]["command"],
        headline.environment["command"],
        "python scripts/benchmarks_page.py",
    ]


def readme(report: Mapping[str, Any], peers: Sequence[PeerResult], headline: Results) -> str:
    """The README's section."""
    where, load = report["environment"]["machine"], report["load"]
    introduction = (
        f"{where['processor']}, {where['cores_usable']} cores, no GPU, the load generator on the same machine; "
        f"{report['environment']['utc'][:10]}. The same model files and the same load for every server, "
        f"rounds in shuffled order ({load['rounds']}); keys, limits and metering are on in Tidegate, and the others "
        "have none of them ([how](docs/06-benchmarks.md), [all servers](benchmarks/results/peers/report.md), "
        "[Tidegate alone](benchmarks/results/headline/report.md))."
    )
    lines = [
        *_wrapped(introduction),
        "",
        *_against(peers),
        "",
        *(f"- {line}" for line in incomparable(peers)),
        "![Right answers a second within the objective, by server](docs/images/goodput.svg)",
        "![Latency against throughput, by server](docs/images/latency.svg)",
        "",
        *_alone(headline),
        *_warnings(
            [
                *uncommitted({"peers": report["environment"], "headline": headline.environment}),
                *report["noise"],
                *headline.noise,
                *doubts(headlines_of(headline), noise_floors(headline.measurements)),
            ]
        ),
        "",
        "To make all of this again:",
        "",
        "```bash",
        *commands(report, headline),
        "```",
    ]
    return "\n".join(lines)


def _against(peers: Sequence[PeerResult]) -> list[str]:
    """Tidegate beside the best peer, task by task."""
    price = machine(read_prices(), "cpu-2")
    columns = (
        "task, objective", "Tidegate", "p50, p95", "best other server", "Tidegate over it [95 %]", "over Triton direct",
        "CPU per request, Tidegate / it", "USD per 1,000",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---|--:|--:|---|--:|--:|--:|--:|"]
    for task in dict.fromkeys(item.task for item in peers):
        here = {item.server: item for item in peers if item.task == task}
        own, found = here.get("tidegate"), {item.server: item for item in ratios(peers) if item.task == task}
        best = next((here[name] for name in found if name not in OWN), None)
        if own is None or best is None:  # struck out: a sentence below says so
            continue
        priced = cost(price, own.goodput.value)
        cells = (
            f"{task}, {own.slo}",
            f"{own.goodput.value:.3g}/s",
            f"{milliseconds(own.p50_ms)}, {milliseconds(own.p95_ms)} ms",
            f"{best.title}, {best.goodput.value:.3g}/s",
            f"**{found[best.server].ratio}**",
            str(found["triton"].ratio if "triton" in found else "-"),
            f"{number(own.cpu_ms_per_request)} / {number(best.cpu_ms_per_request)} ms",
            "-" if priced is None else f"{priced.per_thousand['100%']:.6f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _alone(headline: Results) -> list[str]:
    """Goodput of the gateway itself, and how far its runs agree."""
    lines = ["| Tidegate alone | load | goodput | runs agree within | p50, p95 |", "|---|---|--:|--:|--:|"]
    for item in headlines_of(headline):
        name = f"{item.workload}, {'gRPC' if item.protocol == 'grpc' else 'HTTP'}"
        within = "-" if item.within is None else f"{item.within:.1%}"
        times = f"{milliseconds(item.p50_ms)}, {milliseconds(item.p95_ms)} ms"
        lines.append(f"| {name} | {item.label} | {item.goodput.value:,.0f}/s | {within} | {times} |")
    return lines


def _warnings(reasons: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(reasons))
    return ["", *_wrapped(f"> Not for headlines: {'; '.join(found)}.", "> ")] if found else []


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def goodput(axes: Axes, found: Sequence[PeerResult]) -> None:
    """Bars, best on top; pale where the objective was missed."""
    ordered = sorted(found, key=lambda item: item.goodput.value)
    for row, item in enumerate(ordered):
        value, low, high = item.goodput.value, item.goodput.low, item.goodput.high
        error = [[value - low], [high - value]] if low is not None and high is not None else None
        pale = 0.35 if item.struck else 1.0
        axes.barh(row, value, color=INK[item.server], alpha=pale, xerr=error, error_kw={"lw": 1, "ecolor": "#1c2733"})
    axes.set_yticks(range(len(ordered)), [item.title for item in ordered])
    axes.set_xlabel("per second")
    axes.grid(visible=True, axis="x", alpha=0.3)


def latency(axes: Axes, found: Sequence[PeerResult]) -> None:
    """A line a server over its numbers of users; the objective is dashed."""
    for item in found:
        points: dict[int, list[Measurement]] = {}
        for one in item.measurements:
            if one.valid and one.latency.percentiles["p95"] is not None:
                points.setdefault(int(one.load["users"]), []).append(one)
        groups = [points[users] for users in sorted(points)]
        rates = [middle([one.throughput for one in group]) for group in groups]
        times = [middle_percentile(group, "p95") or 0.0 for group in groups]
        width = 2.4 if item.server == "tidegate" else 1.3
        axes.plot(rates, times, marker="o", ms=4, lw=width, color=INK[item.server], label=item.title)
    axes.axhline(found[0].slo.ms, ls="--", lw=1, color="#1c2733")
    axes.set_xlabel("answers a second")
    axes.set_yscale("log")
    readable(axes.yaxis)
    axes.grid(visible=True, alpha=0.25)


def _draw(
    path: Path, peers: Sequence[PeerResult], plot: Callable[[Axes, Sequence[PeerResult]], None], title: str
) -> None:
    tasks = list(dict.fromkeys(item.task for item in peers))
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            found = [item for item in peers if item.task == task]
            plot(axes, found)
            axes.set_title(f"{task} ({found[0].slo})", fontsize=10)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        if plot is latency:
            panels[0].set_ylabel("p95, ms")
            lines = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_marker() == "o"}
            figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=7, frameon=False)
        figure.suptitle(title, fontsize=11)
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    sys.exit(main())
