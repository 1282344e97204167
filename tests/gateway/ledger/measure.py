"""What the ledger costs, measured: ``python -m tests.gateway.ledger.measure [--rows 100000,1000000]``.

Prints one JSON object: CPU and latency of a reserve and a finish while the journal is synced behind
them, CPU of writing a record to SQLite, and the time of a usage summary by number of records.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from gateway.ledger.ledger import Ledger
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.usage import FIELDS
from gateway.store.usage_daily import rebuild_daily
from gateway.store.usage_reports import latest, summary
from tests.gateway.ledger.support import CountingTriton, fetch, make_call, make_prices

_KEYS, _MODELS, _DAYS = 50, 10, 30


async def measure_ledger(folder: Path, calls: int) -> dict[str, Any]:
    """A pair of writes for each call, then all of them into the database."""
    settings = Settings(data_dir=folder)
    store = await Store.open(settings)
    ledger = Ledger(settings, store, make_prices(), CountingTriton().statistics, interval_s=3600)
    await ledger.start()
    made = [make_call(tokens=10) for _ in range(calls)]
    latencies = []
    cpu = time.thread_time()
    for number, call in enumerate(made):
        begin = time.perf_counter()
        await ledger.reserve(call)
        await ledger.finish(call, "completed", 200)
        latencies.append((time.perf_counter() - begin) * 1e6)
        if number % 20 == 19:
            await asyncio.sleep(0.001)  # lets the sync run: what it costs the others is part of the result
    pair = (time.thread_time() - cpu) / calls * 1e6
    syncs = ledger._journal.syncs
    cpu, whole, begin = time.thread_time(), time.process_time(), time.perf_counter()
    await ledger.flush()
    loop, process = time.thread_time() - cpu, time.process_time() - whole
    wall = time.perf_counter() - begin
    await ledger.stop()
    await store.close()
    cuts = statistics.quantiles(latencies, n=1000)
    return {
        "calls": calls,
        "reserve_and_finish_cpu_us": round(pair, 1),
        "reserve_and_finish_p50_us": round(cuts[499], 1),
        "reserve_and_finish_p99_us": round(cuts[989], 1),
        "reserve_and_finish_p999_us": round(cuts[998], 1),
        "syncs": syncs,
        "flush_loop_cpu_us_per_call": round(loop / calls * 1e6, 1),
        "flush_process_cpu_us_per_call": round(process / calls * 1e6, 1),
        "flush_wall_us_per_call": round(wall / calls * 1e6, 1),
    }


async def measure_reports(folder: Path, rows: int) -> dict[str, Any]:
    """Median times of a summary and of the latest records over ``rows`` records of one month."""
    store = await Store.open(Settings(data_dir=folder))
    values = dict.fromkeys(FIELDS, "0") | {
        "usage_id": "printf('%036d', value)",
        "state": "CASE value % 20 WHEN 0 THEN 'failed' ELSE 'completed' END",
        "organisation": "'organisation'",
        "project": f"'project' || (value % {_KEYS} / 5)",
        "key_id": f"'key' || (value % {_KEYS})",
        "model": f"'model' || (value % {_MODELS})",
        "dialect": "'huggingface'", "operation": "'infer'", "request_id": "'request'", "basis": "'measured'",
        "idempotency_key": "NULL", "error": "NULL", "prices_version": "'v1'", "gateway_id": "'gateway'", "settled": "1",
        "received_at": f"1767225600000000 + value % {_DAYS} * 86400000000", "tokens": "10", "cost_pico_usd": "570",
    }  # fmt: skip
    numbers = "WITH RECURSIVE numbers(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < :rows)"
    async with store.write() as connection:
        names = ", ".join(f'"{name}"' for name in FIELDS)
        selected = ", ".join(values[name] for name in FIELDS)
        query = f"{numbers} INSERT INTO usage_records ({names}) SELECT {selected} FROM numbers"
        await connection.execute(text(query), {"rows": rows})
    begin = time.perf_counter()
    async with store.write() as connection:
        await rebuild_daily(connection)
    rebuild = time.perf_counter() - begin
    result = {"records": rows, "daily_rows": (await fetch(store, "SELECT count(*) FROM usage_daily"))[0][0]}
    async with store.read() as connection:
        result["summary_by_model_ms"] = await _median(lambda: summary(connection, "model"))
        result["summary_by_day_of_one_project_ms"] = await _median(
            lambda: summary(connection, "day", project="project1")
        )
        result["latest_100_ms"] = await _median(lambda: latest(connection, 100, project="project1"))
    await store.close()
    return result | {"rebuild_s": round(rebuild, 2)}


async def _median(action: Any) -> float:
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        await action()
        times.append((time.perf_counter() - begin) * 1e3)
    return round(statistics.median(times), 2)


async def run(calls: int, sizes: list[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        ledger = await measure_ledger(Path(folder) / "ledger", calls)
        reports = [await measure_reports(Path(folder) / str(size), size) for size in sizes]
    return {"ledger": ledger, "reports": reports}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rows", default="1000,100000")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.rows.split(",") if size]
    print(json.dumps(asyncio.run(run(arguments.calls, sizes)), indent=2))


if __name__ == "__main__":
    main()
