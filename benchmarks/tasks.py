"""Task calls through the gateway beside the ceiling of the machine, in turns, in one run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.bootstrap import Interval, median, paired_ratio
from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop
from benchmarks.recording import Outcome
from benchmarks.workloads import WORKLOADS

USERS = (8, 16, 32, 64)
FIRST = 10_000_000
"""Number of the first measured request, here and at the ceiling: texts carry it, and a longer one is more tokens."""


class CeilingError(Exception):
    """The ceiling program failed; the message is its last line."""


class TaskComparison(msgspec.Struct, frozen=True):
    """Items a second through the gateway and at the ceiling."""

    workload: str
    users: int
    """The concurrency that saturated the machine."""
    gateway: Interval
    ceiling: Interval
    ratio: Interval
    way: dict[str, Any]
    """How the ceiling was reached: sessions, threads, batch."""
    faults: int
    fault: str | None


class CeilingProgram:
    """``python -m benchmarks.ceiling`` as a child process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.way = self._read()

    def run(self, seconds: float) -> float:
        """Items a second over ``seconds``. Raises :class:`CeilingError`."""
        if self._process.stdin is None:
            raise CeilingError("no pipe")
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._read()["items_per_s"])

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            error = (self._process.stderr.read() if self._process.stderr else "").strip().splitlines()
            raise CeilingError(error[-1] if error else "the ceiling program ended")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def ceiling(workload: str, repository: Path, seed: int) -> Iterator[CeilingProgram]:
    """The program, warmed up. Raises :class:`CeilingError`."""
    command = [
        sys.executable, "-m", "benchmarks.ceiling", workload, "--model-repository", str(repository),
        "--seed", str(seed),
    ]  # fmt: skip
    with subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield CeilingProgram(process)
        finally:
            process.kill()


async def compare(
    workload_name: str,
    url: str,
    key: str | None,
    repository: Path,
    *,
    seed: int,
    rounds: int,
    leg_s: float,
    say: Callable[[str], None] = lambda _: None,
) -> TaskComparison:
    """Find the concurrency that saturates, then alternate. Raises :class:`CeilingError` or ``OSError``."""
    workload = WORKLOADS[workload_name](seed)
    with ceiling(workload_name, repository, seed) as program:
        async with connect(url, key, limit=max(USERS)) as client:
            tried: dict[int, float] = {}
            for users in USERS:
                run = await ClosedLoop(client, workload, users, start=users * 100_000).run(leg_s, 0.5)
                tried[users] = run.throughput
                say(f"{workload_name}: {run.throughput:,.1f}/s with {users} users")
            users = max(tried, key=lambda number: tried[number])
            gateway, top, faults, fault = [], [], 0, None
            for number in range(rounds):
                run = await ClosedLoop(client, workload, users, start=(number + 1) * FIRST).run(leg_s, 0.5)
                top.append(program.run(leg_s))
                gateway.append(run.throughput)
                faults += len(run.recording) - run.recording.count(Outcome.OK)
                fault = next(iter(run.recording.faults), fault)
                say(f"{workload_name}: gateway {gateway[-1]:,.1f}/s, ceiling {top[-1]:,.1f}/s")
        return TaskComparison(
            workload_name, users, median(gateway), median(top), paired_ratio(gateway, top), program.way, faults, fault
        )
