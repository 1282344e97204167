"""What a request costs each load generator: both before a server that does nothing.

    python -m benchmarks.generators [--users 32] [--seconds 5] [--rounds 3] [--json]

Prints requests a second and the generator's own processor time per request; a generator that needs more of
the machine leaves less of it to the system under test. See docs/decisions/0006-load-generators.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence

import msgspec

from benchmarks import locust_engine
from benchmarks.bootstrap import Interval, median
from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop
from benchmarks.locust_engine import LocustLoad
from benchmarks.null_server import serving
from benchmarks.recording import as_dict
from benchmarks.workloads import WORKLOADS


class Generator(msgspec.Struct, frozen=True):
    """Medians over rounds; the loads are closed loops of `identity` over HTTP."""

    name: str
    processes: int
    requests_per_s: Interval
    cpu_us_per_request: Interval


async def measure(users: int, seconds: float, rounds: int) -> list[Generator]:
    """Both engines in turns. Raises ``OSError`` or :class:`~benchmarks.locust_engine.LocustError`."""
    found: dict[str, list[tuple[int, float, float]]] = {"asyncio and httptools": [], "Locust, FastHttpUser": []}
    with serving() as url:
        for number in range(rounds):
            found["asyncio and httptools"].append(await _asyncio(url, users, seconds, number))
            found["Locust, FastHttpUser"].append(await _locust(url, users, seconds, number))
    return [
        Generator(name, values[0][0], median([rate for _, rate, _ in values]), median([cost for _, _, cost in values]))
        for name, values in found.items()
    ]


async def _asyncio(url: str, users: int, seconds: float, seed: int) -> tuple[int, float, float]:
    async with connect(url, None, limit=users) as client:
        run = await ClosedLoop(client, WORKLOADS["identity"](seed), users).run(seconds, 1.0)
    return 1, run.throughput, run.cpu_s / max(1, len(run.recording)) * 1e6


async def _locust(url: str, users: int, seconds: float, seed: int) -> tuple[int, float, float]:
    load = LocustLoad("identity", url, None, users, seconds, 1.0, seed)
    run = await locust_engine.run(load)
    right = run.counters["outcomes"].get("ok", 0)
    return load.processes, right / seconds, sum(run.cpu_s.values()) / max(1, right) * 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generators", description=__doc__)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    found = asyncio.run(measure(asked.users, asked.seconds, asked.rounds))
    if asked.json:
        print(json.dumps(as_dict(found), indent=1))
        return
    print("| generator | processes | requests/s [95 %] | its CPU µs per request [95 %] |\n|---|--:|--:|--:|")
    for item in found:
        print(f"| {item.name} | {item.processes} | {item.requests_per_s} | {item.cpu_us_per_request} |")


if __name__ == "__main__":
    main()
