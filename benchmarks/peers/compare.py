"""The same load on every server, one after the other in shuffled rounds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import measurement as measure
from benchmarks.bootstrap import Interval, median
from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop
from benchmarks.measurement import Measurement
from benchmarks.observe import resources
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.install import interpreter
from benchmarks.peers.server import PeerServer
from benchmarks.peers.workloads import for_peer
from benchmarks.stack import Stack
from benchmarks.suite import Slo

OWN = ("tidegate", "triton")


class PeerResult(msgspec.Struct, frozen=True):
    """One server on one task, at the number of users where its goodput was highest."""

    server: str
    task: str
    users: int
    goodput: Interval
    p50_ms: float | None
    p95_ms: float | None
    cpu_ms_per_request: float | None
    rss_bytes: int | None
    faults: int
    fault: str | None
    measurements: list[Measurement]


@dataclass(slots=True, frozen=True)
class Load:
    """What every server gets."""

    users: Sequence[int]
    seconds: float
    warmup_s: float
    slo: Slo
    seed: int


async def compare(
    servers: Sequence[str],
    task: str,
    repository: Path,
    load: Load,
    *,
    rounds: int,
    python: Callable[[str], Path] = interpreter,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[PeerResult], list[str]]:
    """Results, and why the others have none; ``python`` names each peer's interpreter.

    Every round starts each server anew, in another order.
    """
    points: dict[str, list[list[Measurement]]] = {name: [] for name in servers}
    skipped: dict[str, str] = {}
    order = random.Random(load.seed)
    for number in range(rounds):
        for name in order.sample(list(servers), len(servers)):
            if name in skipped:
                continue
            try:
                points[name].append(await _round(name, task, repository, load, python))
            except Exception as error:  # noqa: BLE001 - a boundary: one server's failure must not end the comparison
                skipped[name] = f"{name}: {type(error).__name__}: {error}"
                say(f"skipped {skipped[name]}")
                continue
            best = max(points[name][-1], key=lambda item: item.goodput)
            say(f"round {number + 1}, {task}, {name}: {best.goodput:,.1f}/s within {load.slo}, {best.label}")
    return [_result(name, task, found) for name, found in points.items() if found], list(skipped.values())


async def _round(
    name: str, task: str, repository: Path, load: Load, python: Callable[[str], Path]
) -> list[Measurement]:
    found = []
    workload = await asyncio.to_thread(for_peer, name, task, load.seed, repository)
    with _serving(name, workload.model, repository, python) as (url, key, pid):
        async with connect(url, key, limit=max(load.users), timeout_s=30) as client:
            for users in load.users:
                before = resources(pid)
                loop = ClosedLoop(client, workload, users, start=users * 1_000_000)
                run = await loop.run(load.seconds, load.warmup_s)
                item = measure.of_closed(
                    run, scenario="closed_sweep", workload=task, protocol="http", slo=load.slo, seed=load.seed
                )
                item.variant = name
                measure.attach(item, before=before, after=resources(pid), answered=loop.answered)
                found.append(item)
    return found


@contextlib.contextmanager
def _serving(
    name: str, model: str, repository: Path, python: Callable[[str], Path]
) -> Iterator[tuple[str, str | None, int]]:
    if name in OWN:
        with Stack([model], model_repository=repository) as stack:
            where = stack.addresses
            yield (
                (where.gateway if name == "tidegate" else where.triton),
                where.key if name == "tidegate" else None,
                stack.pid,
            )
        return
    server = PeerServer(name, python(name), repository / model)
    with server as url:
        yield url, None, server.pid


def _result(name: str, task: str, rounds: list[list[Measurement]]) -> PeerResult:
    users = max(range(len(rounds[0])), key=lambda index: median([found[index].goodput for found in rounds]).value)
    chosen = [found[users] for found in rounds]
    last = chosen[-1]
    faults = sum(item.counts["wrong"] + item.counts["error"] + item.counts["timeout"] for item in chosen)
    return PeerResult(
        PEERS[name].title if name in PEERS else {"tidegate": "Tidegate", "triton": "Triton direct"}[name],
        task,
        int(last.load["users"]),
        median([item.goodput for item in chosen]),
        last.latency.percentiles["p50"],
        last.latency.percentiles["p95"],
        sum(last.cpu_us_per_request.values()) / 1000 if last.cpu_us_per_request else None,
        last.rss_bytes,
        faults,
        next(iter(last.faults), None),
        [item for found in rounds for item in found],
    )


def table(results: Sequence[PeerResult]) -> list[str]:
    """Markdown lines, best first."""
    lines = [
        "| task | server | users | goodput/s [95 %] | p50 ms | p95 ms | CPU ms per request | memory MiB | faults |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for item in sorted(results, key=lambda found: (found.task, -found.goodput.value)):
        cells: list[Any] = [
            item.task, item.server, item.users, item.goodput, _number(item.p50_ms), _number(item.p95_ms),
            _number(item.cpu_ms_per_request), _number(None if item.rss_bytes is None else item.rss_bytes / 2**20),
            item.faults,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    faults = [f"> {item.server}, {item.task}: {item.fault}" for item in results if item.fault]
    return [*lines, *([""] if faults else []), *faults]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
