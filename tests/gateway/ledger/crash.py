"""A ledger under load, killed with SIGKILL at random points, over and over; then the books are read.

``python -m tests.gateway.ledger.crash --folder DIR --iterations 1000`` runs it by hand. Each
iteration forks a gateway-like process that reserves and finishes calls, and says on a pipe which
ones it has acknowledged: what a client saw. Database: SQLite in the folder, or ``--database URL``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

from pydantic import SecretStr

from gateway.errors import Unavailable
from gateway.ledger.ledger import Ledger
from gateway.settings import Settings
from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage_daily import rebuild_daily
from tests.gateway.ledger.support import CountingTriton, fetch, make_call, make_prices, until

_CONCURRENCY = 8
_ENDS = (("completed", 200), ("failed", 502), ("client_closed", 499))


def settings(folder: Path, database: str | None, sync_ms: float) -> Settings:
    url = None if database is None else SecretStr(database)
    return Settings(data_dir=folder, database_url=url, journal_max_bytes=2**18, journal_sync_ms=sync_ms)


async def work(folder: Path, database: str | None, sync_ms: float, acknowledge: int, seed: int) -> None:
    """Serve calls until killed."""
    chance = random.Random(seed)
    triton = CountingTriton()
    triton.infer("sentiment", 0)
    configuration = settings(folder, database, sync_ms)
    store = await Store.open(configuration)
    ledger = Ledger(configuration, store, make_prices(), triton.statistics, interval_s=0.02)
    await ledger.start()

    async def client() -> None:
        while True:
            call = make_call(tokens=chance.randrange(1, 64))
            try:
                await ledger.reserve(call)
                await asyncio.sleep(chance.random() * 0.004)
                triton.infer("sentiment", 1, chance.randrange(10**6))
                state, status = chance.choices(_ENDS, (85, 10, 5))[0]
                await ledger.finish(call, state, status)  # type: ignore[arg-type]
            except Unavailable:
                await asyncio.sleep(0.001)
                continue
            os.write(acknowledge, f"{call.usage_id} {state}\n".encode())

    await asyncio.gather(*(client() for _ in range(_CONCURRENCY)))


def run_and_kill(folder: Path, database: str | None, sync_ms: float, chance: random.Random) -> list[list[str]]:
    """One iteration; returns what was acknowledged before the process died."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            asyncio.run(work(folder, database, sync_ms, writer, chance.randrange(2**32)))
        finally:
            os._exit(1)
    os.close(writer)
    received = bytearray()
    select.select([reader], [], [], 30)  # its first answer, then a moment of load
    deadline = time.monotonic() + chance.random() * 0.25
    killed = False
    while True:
        wait = max(0.0, deadline - time.monotonic())
        if not killed and wait == 0.0:
            os.kill(child, signal.SIGKILL)
            killed = True
        ready, _, _ = select.select([reader], [], [], None if killed else wait)
        if ready:
            data = os.read(reader, 65536)
            if not data:
                break
            received += data
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit("the process under test died by itself")
    return [line.split() for line in received.decode().splitlines()]


async def audit(folder: Path, database: str | None, acknowledged: dict[str, str]) -> dict[str, int]:
    """Replay what is left, and compare the database with what was acknowledged."""
    configuration = settings(folder, database, 20.0)
    store = await Store.open(configuration)
    ledger = Ledger(configuration, store, make_prices(), CountingTriton().statistics, interval_s=0.02)
    await ledger.start()
    await until(lambda: _journals(folder) == [ledger.gateway_id], 900)
    await ledger.stop()
    states = dict(await fetch(store, "SELECT usage_id, state FROM usage_records"))
    unsettled = (await fetch(store, "SELECT count(*) FROM usage_records WHERE NOT settled"))[0][0]
    async with store.write() as connection:
        wrong_sums = [*await rebuild_daily(connection), *await usage_totals.rebuild(connection)]
    await store.close()
    return {
        "acknowledged": len(acknowledged),
        "records": len(states),
        "missing": sum(usage_id not in states for usage_id in acknowledged),
        "wrong": sum(states.get(usage_id, state) != state for usage_id, state in acknowledged.items()),
        "reserved": sum(state == "reserved" for state in states.values()),
        "unknown": sum(state == "unknown" for state in states.values()),
        "ended_unacknowledged": sum(
            state not in ("reserved", "unknown") and usage_id not in acknowledged for usage_id, state in states.items()
        ),
        "unsettled": unsettled,
        "wrong_sums": len(wrong_sums),
        "damaged": ledger.damaged,
        "journals_left": len(_journals(folder)),
    }


def _journals(folder: Path) -> list[str]:
    root = folder / "journal"
    return [path.name for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--database")
    parser.add_argument("--sync-ms", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    acknowledged: dict[str, str] = {}
    twice = 0
    for iteration in range(arguments.iterations):
        for usage_id, state in run_and_kill(arguments.folder, arguments.database, arguments.sync_ms, chance):
            twice += usage_id in acknowledged
            acknowledged[usage_id] = state
        if iteration % 50 == 49:
            print(f"{iteration + 1} kills, {len(acknowledged)} calls acknowledged", file=sys.stderr, flush=True)
    result = asyncio.run(audit(arguments.folder, arguments.database, acknowledged))
    print(json.dumps({"kills": arguments.iterations, "acknowledged_twice": twice, **result}))


if __name__ == "__main__":
    main()
