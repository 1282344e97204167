"""What the rounds come to: a row a server, and how far the best peer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.bootstrap import Interval, median, middle, paired_ratio
from benchmarks.measurement import Measurement
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.ways import Way
from benchmarks.repeatability import middle_percentile, repeats_within
from benchmarks.suite import Slo

OWN: Mapping[str, str] = {"tidegate": "Tidegate", "triton": "Triton direct"}
"""Servers that are started with ``tidegate up``."""
TARGET = 1.3


class PeerResult(msgspec.Struct, frozen=True):
    """One server on one task, at the number of users where most right answers came in time."""

    server: str
    title: str
    task: str
    slo: Slo
    way: str
    """How it works: processes x threads of ONNX Runtime each, batches, switches."""
    users: int
    goodput: Interval
    """Right answers a second within the objective: median over rounds."""
    rounds: list[float]
    meets_slo: bool
    """Whether the objective's percentile of all requests was in time, in most rounds."""
    p50_ms: float | None
    p95_ms: float | None
    cpu_ms_per_request: float | None
    """Processor time of the server's whole process tree."""
    rss_bytes: int | None
    faults: int
    fault: str | None
    valid: bool
    measurements: list[Measurement]

    @property
    def struck(self) -> bool:
        """Struck out in tables, and compared with nobody: INVALID, or the objective was missed."""
        return not (self.valid and self.meets_slo)


class Ratio(msgspec.Struct, frozen=True):
    """Tidegate's goodput over another server's, rounds paired."""

    task: str
    server: str
    title: str
    ratio: Interval


def result(name: str, task: str, way: Way | None, rounds: Sequence[Sequence[Measurement]]) -> PeerResult:
    """``rounds`` holds a measurement for each number of users.

    Numbers of users at which the objective was met come first, then those with most goodput.
    """
    columns = [[found[index] for found in rounds] for index in range(len(rounds[0]))]
    chosen = max(columns, key=lambda column: (_met(column), middle([item.goodput for item in column])))
    cpu = [sum(item.cpu_us_per_request.values()) / 1000 for item in chosen if item.cpu_us_per_request]
    memory = [item.rss_bytes for item in chosen if item.rss_bytes is not None]
    values = [item.goodput for item in chosen]
    return PeerResult(
        name,
        PEERS[name].title if name in PEERS else OWN[name],
        task,
        chosen[0].slo,
        "" if way is None else str(way),
        int(chosen[0].load["users"]),
        median(values),
        values,
        _met(chosen),
        middle_percentile(chosen, "p50"),
        middle_percentile(chosen, "p95"),
        middle(cpu) if cpu else None,
        max(memory) if memory else None,
        sum(item.counts["wrong"] + item.counts["error"] + item.counts["timeout"] for item in chosen),
        next((fault for item in chosen for fault in item.faults), None),
        all(item.valid for item in chosen),
        [item for found in rounds for item in found],
    )


def _met(column: Sequence[Measurement]) -> bool:
    return sum(item.meets_slo for item in column) * 2 > len(column)


def ratios(results: Sequence[PeerResult]) -> list[Ratio]:
    """For each task: Tidegate over the best peer, and over Triton itself, as far as they were measured.

    Only servers that are VALID and met the objective are compared, Tidegate included.
    """
    found: list[Ratio] = []
    for task in dict.fromkeys(item.task for item in results):
        here = {item.server: item for item in results if item.task == task and not item.struck}
        own = here.get("tidegate")
        peers = [item for item in here.values() if item.server not in OWN]
        if own is None:
            continue
        best = [max(peers, key=lambda item: item.goodput.value)] if peers else []
        direct = [here["triton"]] if "triton" in here else []
        found += [
            Ratio(task, other.server, other.title, paired_ratio(own.rounds, other.rounds)) for other in [*best, *direct]
        ]
    return found


def verdicts(results: Sequence[PeerResult]) -> list[str]:
    """A sentence for each ratio, for each comparison that cannot be made, and for each headline that the rounds
    do not repeat.
    """
    lines = []
    for item in ratios(results):
        value = item.ratio.value
        if item.server in OWN:
            word = "pre-processing is not in its load, and nobody checks a key"
        elif value >= TARGET:
            word = f"the target of {TARGET} is met"
        elif value >= 1:
            word = f"the target of {TARGET} is missed"
        else:
            word = "Tidegate loses"
        lines.append(f"{item.task}: Tidegate over {item.title}: {item.ratio}; {word}.")
    lines += incomparable(results)
    for found in results:
        within = repeats_within(found.rounds)
        if found.server == "tidegate" and (within is None or within > 0.05):
            known = "too few rounds to say" if within is None else f"rounds put it within {within:.0%} only: too noisy"
            lines.append(f"{found.task}: whether Tidegate's figure repeats within 5 %: {known}.")
    return lines


def incomparable(results: Sequence[PeerResult]) -> list[str]:
    """A sentence for each task that Tidegate was measured on and has no ratio for."""
    tasks = dict.fromkeys(item.task for item in results)
    return [line for task in tasks for line in _missing([item for item in results if item.task == task])]


def _missing(here: Sequence[PeerResult]) -> list[str]:
    """Why one task's servers cannot be compared, if so."""
    own = next((item for item in here if item.server == "tidegate"), None)
    peers = [item for item in here if item.server not in OWN]
    if own is not None and own.struck:
        word = "missed its objective" if own.valid else "is INVALID"
        return [f"{own.task}: Tidegate {word}: it is compared with nobody, and the target of {TARGET} is missed."]
    if own is not None and peers and all(item.struck for item in peers):
        return [f"{own.task}: no other server met the objective: there is nobody to compare with."]
    return []


def table(results: Sequence[PeerResult]) -> list[str]:
    """Markdown lines, best first; struck out where the objective was missed or a run is INVALID."""
    columns = (
        "task", "server", "processes x threads, batches", "users", "goodput/s [95 %]", "p50 ms", "p95 ms",
        "CPU ms per request", "memory MiB", "faults", "objective",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for item in sorted(results, key=lambda found: (found.task, -found.goodput.value)):
        state = f"{item.slo}: {'met' if item.meets_slo else 'missed'}" if item.valid else "INVALID"
        cells: list[Any] = [
            item.task, item.title, item.way or "-", item.users, item.goodput, number(item.p50_ms), number(item.p95_ms),
            number(item.cpu_ms_per_request), number(None if item.rss_bytes is None else item.rss_bytes / 2**20),
            item.faults, state,
        ]  # fmt: skip
        lines.append("| " + " | ".join(f"~~{cell}~~" if item.struck else str(cell) for cell in cells) + " |")
    faults = [f"> {item.title}, {item.task}: {item.fault}" for item in results if item.fault]
    return [*lines, *([""] if faults else []), *faults]


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
