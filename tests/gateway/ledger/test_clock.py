"""The wall clock is stepped: records are of the day that it shows, and no call is counted twice or not at all."""

from __future__ import annotations

import datetime as dt

import pytest

from gateway.access.idempotency import Answer, Idempotency
from gateway.errors import AnswerLost, InProgress
from gateway.ledger.ledger import Ledger
from gateway.store import usage_totals
from gateway.store.usage_daily import rebuild_daily
from tests.gateway.access.support import Clock
from tests.gateway.ledger.support import fetch, make_call, make_prices, serve, until

NOON = 1795435200.0
"""2026-11-23 12:00 UTC."""
DAY = 86_400.0


@pytest.fixture
async def start_ledger(settings, store, triton):
    """Ledgers with a clock of their own; the first one of a folder each."""
    ledgers = []

    async def start(name, clock):
        folder = settings.data_dir / name
        folder.mkdir()
        used = settings.model_copy(update={"data_dir": folder})
        ledgers.append(Ledger(used, store, make_prices(), triton.statistics, interval_s=0.02, clock=clock))
        await ledgers[-1].start()
        return ledgers[-1]

    yield start
    for ledger in ledgers:
        await ledger.stop()


@pytest.mark.parametrize("step", [-40 * DAY, -DAY, -3600.0, 3600.0, DAY, 40 * DAY])
async def test_a_stepped_clock_moves_records_to_its_day_and_counts_each_once(start_ledger, store, step):
    clock = Clock(NOON)
    ledger = await start_ledger("one", clock)
    in_flight = make_call()
    await ledger.reserve(in_flight)
    calls = [await serve(ledger) for _ in range(3)]
    clock.forward(step)
    calls += [await serve(ledger) for _ in range(3)]
    await ledger.finish(in_flight, "completed", 200)
    assert ledger.consistent
    await ledger.stop()
    days = [dt.datetime.fromtimestamp(at, dt.timezone.utc).date().isoformat() for at in (NOON, NOON + step)]
    found = dict(await fetch(store, "SELECT day, sum(requests) FROM usage_daily GROUP BY day"))
    expected = {days[0]: 7} if days[0] == days[1] else {days[0]: 4, days[1]: 3}
    assert {day: int(requests) for day, requests in found.items()} == expected
    assert await fetch(store, "SELECT count(*), count(DISTINCT usage_id) FROM usage_records") == [(7, 7)]
    assert {call.usage_id for call in calls} < {
        row[0] for row in await fetch(store, "SELECT usage_id FROM usage_records")
    }


async def test_a_call_that_another_clock_takes_for_abandoned_ends_all_the_same(start_ledger, store):
    ledger = await start_ledger("one", Clock(NOON))
    call = make_call(rows=3)
    await ledger.reserve(call)
    await ledger.flush()
    other = await start_ledger("other", Clock(NOON + 2 * DAY))
    other._next_reap = 0.0
    await until(lambda: other.unknown == 1)
    await ledger.finish(call, "completed", 200)
    await ledger.stop()
    assert await fetch(store, "SELECT state, rows FROM usage_records") == [("completed", 3)]
    async with store.write() as connection:
        assert await rebuild_daily(connection) == []
        assert await usage_totals.rebuild(connection) == []


@pytest.mark.parametrize("step", [-40 * DAY, -3600.0, 3600.0, DAY - 60])
async def test_a_key_in_use_is_not_executed_again_whatever_the_clock_shows(store, settings, step):
    clock = Clock(NOON)
    keys, other = (Idempotency(store, settings, clock=clock) for _ in range(2))
    first = make_call()
    first.idempotency_key = "order-1"
    assert await keys.begin(first, [b"request"]) is None
    assert first.reserve_key is not None
    await first.reserve_key()
    clock.forward(step)
    again = make_call()
    again.idempotency_key = "order-1"
    with pytest.raises((InProgress, AnswerLost)):
        await other.begin(again, [b"request"])
    await keys.keep(first, Answer(200, b"done"))
    answer = await other.begin(again, [b"request"])
    assert answer is not None
    assert answer.body == b"done"
