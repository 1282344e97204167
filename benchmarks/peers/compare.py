"""The same load on every server, one after the other in shuffled rounds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import measurement as measure
from benchmarks.bootstrap import middle
from benchmarks.client import Client, connect
from benchmarks.closedloop import ClosedLoop
from benchmarks.limits import impose
from benchmarks.measurement import Measurement
from benchmarks.observe import Observer, resources
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.install import interpreter
from benchmarks.peers.server import PeerServer
from benchmarks.peers.summary import OWN, PeerResult, result
from benchmarks.peers.ways import Way
from benchmarks.peers.workloads import for_peer
from benchmarks.stack import Stack
from benchmarks.suite import Slo
from benchmarks.workloads import Workload, WrongAnswer

RECORDS_S = 15.0
"""How long usage records are waited for."""


class AnswerError(Exception):
    """A server answers a golden input wrongly, asked alone; it is not measured."""


@dataclass(slots=True, frozen=True)
class Load:
    """What every server gets."""

    users: Sequence[int]
    seconds: float
    warmup_s: float
    """Once after each start, with the middle number of users: batching that adapts learns from it."""
    settle_s: float
    """Before each measurement: so long the new number of users runs unmeasured."""
    slo: Slo
    seed: int


@dataclass(slots=True)
class Comparison:
    """Servers on one task; ``python`` names each peer's interpreter, ``ways`` how each spreads its work."""

    task: str
    repository: Path
    load: Load
    python: Callable[[str], Path] = interpreter
    ways: Mapping[str, Way] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    samples: Path | None = None
    """Folder for every request of every measurement."""
    _workloads: dict[str, Workload] = field(default_factory=dict)

    def way(self, server: str) -> Way | None:
        """What ``server`` is started with; None for our own, which the model's configuration decides."""
        return None if server in OWN else self.ways.get(server) or PEERS[server].start()

    async def run(self, servers: Sequence[str], rounds: int) -> tuple[list[PeerResult], list[str]]:
        """Results, and why the others have none. Every round starts each server anew, in another order."""
        points: dict[str, list[list[Measurement]]] = {name: [] for name in servers}
        skipped: dict[str, str] = {}
        order = random.Random(self.load.seed)
        for number in range(rounds):
            for name in order.sample(list(servers), len(servers)):
                if name in skipped:
                    continue
                try:
                    found = await self.round(name, self.way(name), number)
                except Exception as error:  # noqa: BLE001 - a boundary: one server's failure must not end the comparison
                    skipped[name] = f"{name}, {self.task}: {type(error).__name__}: {error}"
                    self.say(f"skipped {skipped[name]}")
                    continue
                points[name].append(found)
                self.say(f"round {number + 1} of {rounds}, {self.task}, {name}: {_best(found)}")
        whole = [(name, found) for name, found in points.items() if len(found) == rounds]
        return [result(name, self.task, self.way(name), found) for name, found in whole], list(skipped.values())

    async def tune(self, server: str, rounds: int = 1) -> tuple[Way, dict[str, float]]:
        """The way that does best, and right answers in time, a second, of each that was tried (median over rounds).

        A coarse search: each stage varies the best way so far. A way that does not work counts 0.
        """
        best = PEERS[server].start()
        found: dict[str, float] = {}
        for stage in PEERS[server].stages:
            ways = {str(way): way for way in (best, *stage(best, os.cpu_count() or 1))}
            new = {name: way for name, way in ways.items() if name not in found}
            trials = await self._trials(server, new, rounds)
            found |= {name: middle(values) for name, values in trials.items()}
            best = ways[max(ways, key=lambda name: found[name])]
        return best, found

    async def _trials(self, server: str, ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                try:
                    points = await self.round(server, way)
                except Exception as error:  # noqa: BLE001 - a boundary: a way that does not work is not chosen
                    self.say(f"{self.task}, {server}, {name}: {type(error).__name__}: {error}")
                    found[name].append(0.0)
                    continue
                found[name].append(max(item.goodput for item in points))
                self.say(f"{self.task}, {server}, {name}: {_best(points)}")
        return found

    async def round(self, server: str, way: Way | None, number: int = 0) -> list[Measurement]:
        """Start ``server``, check its answers, warm it up, load it with each number of users, end it."""
        workload = await asyncio.to_thread(self._workload, server)
        with _serving(server, workload.model, self, way) as (url, key, pid):
            async with connect(url, key, limit=max(self.load.users), timeout_s=30) as client:
                answered = await verify(client, workload)
                middling = sorted(self.load.users)[len(self.load.users) // 2]
                warmup = ClosedLoop(client, workload, middling)
                await warmup.run(self.load.warmup_s)
                answered += warmup.answered
                points = []
                for users in self.load.users:
                    item, more = await self._point(server, workload, client, users, pid, number)
                    points.append(item)
                    answered += more
            if server == "tidegate":
                await asyncio.to_thread(_check_books, Observer(url, key), answered, points)
        return points

    def _workload(self, server: str) -> Workload:
        """Made once: golden answers and the tensors for Triton take longer than some servers need to start."""
        if server not in self._workloads:
            self._workloads[server] = for_peer(server, self.task, self.load.seed, self.repository)
        return self._workloads[server]

    async def _point(
        self, server: str, workload: Workload, client: Client, users: int, pid: int, number: int
    ) -> tuple[Measurement, int]:
        load, before = self.load, resources(pid)
        loop = ClosedLoop(client, workload, users, start=users * 1_000_000)
        run = await loop.run(load.seconds, load.settle_s)
        item = measure.of_closed(
            run, scenario="closed_sweep", workload=self.task, protocol="http", slo=load.slo, seed=load.seed
        )
        item.variant, item.run = server, number
        item.windows = []  # hundreds of measurements: the report need not hold every second
        measure.attach(item, before=before, after=resources(pid), answered=loop.answered)
        if self.samples is not None:
            run.recording.write_jsonl(self.samples / f"{self.task}-{server}-{users}-{number}.jsonl.gz")
        return item, loop.answered


async def verify(client: Client, workload: Workload) -> int:
    """Ask every golden input once, alone; returns how many were answered. Raises :class:`AnswerError`."""
    for number in range(workload.goldens):
        payload = workload.golden(number)
        exchange = await client.post(payload)
        if exchange.status != 200:
            text = exchange.body[:200].decode("utf-8", "replace")
            raise AnswerError(f"golden input {number} is answered {exchange.status or 'not at all'}: {text}")
        try:
            workload.check(payload, exchange.body)
        except WrongAnswer as error:
            raise AnswerError(str(error)) from error
    return workload.goldens


def _check_books(observer: Observer, answered: int, points: Sequence[Measurement]) -> None:
    """Keys and metering are on while we are measured: as many usage records as answers, or all of it is INVALID."""
    deadline = time.monotonic() + RECORDS_S
    found = observer.completed()
    while found is not None and found < answered and time.monotonic() < deadline:
        time.sleep(0.2)
        found = observer.completed()
    if found != answered:
        for item in points:
            item.verdict = "INVALID"
            item.reasons.append(f"{found} usage records for {answered} answered requests")


@contextlib.contextmanager
def _serving(server: str, model: str, comparison: Comparison, way: Way | None) -> Iterator[tuple[str, str | None, int]]:
    """The running server: URL, key, process."""
    if server in OWN:
        with Stack([model], model_repository=comparison.repository) as stack:
            where = stack.addresses
            own = server == "tidegate"
            if own:
                impose(stack)
            yield (where.gateway if own else where.triton), where.key if own else None, stack.pid
        return
    peer = PeerServer(server, comparison.python(server), comparison.repository / model, way)
    with peer as url:
        yield url, None, peer.pid


def _best(points: Sequence[Measurement]) -> str:
    best = max(points, key=lambda item: item.goodput)
    return f"{best.goodput:,.1f}/s within {best.slo}, {best.label}"
