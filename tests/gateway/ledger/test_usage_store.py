"""gateway/store/usage.py: what arrives how often, in which order, from how many."""

import asyncio
import datetime as dt
import itertools
import random
from decimal import Decimal

import msgspec
import pytest

from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage import (
    NotFreshError,
    Settlement,
    abandoned,
    newer,
    open_records,
    write,
)
from gateway.store.usage_daily import day_of, rebuild_daily
from gateway.store.usage_reports import latest, parse_day, summary
from gateway.store.usage_totals import RecordedRows
from tests.gateway.ledger.support import fetch, make_record

SUMS = "SELECT sum(requests), sum(tokens), sum(cost_pico_usd) FROM usage_daily"


async def put(store, records, settlements=(), **options):
    async with store.write() as connection:
        return await write(connection, records, settlements, **options)


async def totals(store):
    return tuple(int(value or 0) for value in (await fetch(store, SUMS))[0])


async def drift(store):
    async with store.write() as connection:
        return await rebuild_daily(connection)


def settlement(record, cost=7):
    return Settlement(record.usage_id, 3, 5, 0, cost, cost, "measured", "v1")


@pytest.mark.parametrize("count", [1, 101, 1_001, 10_001])
@pytest.mark.parametrize("fresh", [True, False])
async def test_every_record_of_a_batch_is_written(store, count, fresh):
    records = [make_record(key_id=f"key-{index}", project=f"p{index}", tokens=2) for index in range(count)]
    written = await put(store, records, fresh=fresh)
    assert (written.inserted, written.ended) == (count, count)
    assert await fetch(store, "SELECT count(DISTINCT key_id) FROM usage_records") == [(count,)]
    assert await totals(store) == (count, 2 * count, 0)
    assert await drift(store) == []


async def test_a_record_comes_back_as_it_was_written(store):
    record = make_record(
        state="completed",
        error=None,
        idempotency_key="k'\"\\",
        request_id="日本語",
        test=True,
        tokens=2**40,
        status=200,
    )
    await put(store, [record], fresh=True)
    async with store.read() as connection:
        (found,) = await open_records(connection, "gateway", 10)
    assert found == record


async def test_writing_again_changes_nothing(store):
    records = [make_record(tokens=1) for _ in range(10)]
    await put(store, records, fresh=True)
    with pytest.raises(NotFreshError):
        await put(store, records, fresh=True)
    again = await put(store, records)
    assert (again.inserted, again.updated, again.ended) == (0, 0, 0)
    assert await totals(store) == (10, 10, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(["reserved", "unknown", "completed"])))
async def test_whatever_the_order_the_end_wins(store, order):
    base = make_record(tokens=4)
    for state in order:
        await put(store, [msgspec.structs.replace(base, state=state)])
    assert await fetch(store, "SELECT state FROM usage_records") == [("completed",)]
    assert await totals(store) == (1, 4, 0)
    assert await drift(store) == []


@pytest.mark.parametrize("first", ["completed", "failed", "client_closed"])
@pytest.mark.parametrize("second", ["completed", "failed", "client_closed"])
def test_the_first_end_stays(first, second):
    assert not newer(make_record(state=first), make_record(state=second))


async def test_a_cost_is_settled_once(store):
    record = make_record(cost_pico_usd=100, basis="estimate")
    await put(store, [record], fresh=True)
    assert (await totals(store))[2] == 100
    for cost in (7, 9):
        await put(store, [], [settlement(record, cost)])
    assert await fetch(store, "SELECT cost_pico_usd, basis, queue_ns, compute_ns FROM usage_records") == [
        (7, "measured", 3, 5)
    ]
    assert (await totals(store))[2] == 7
    assert await drift(store) == []


async def test_only_completed_records_are_settled(store):
    for state in ("reserved", "failed", "unknown"):
        record = make_record(state=state)
        await put(store, [record], [settlement(record)])
    await put(store, [], [settlement(make_record())])
    assert await fetch(store, "SELECT sum(cost_pico_usd) FROM usage_records") == [(0,)]


async def test_reserved_records_are_in_no_sum(store):
    await put(store, [make_record(state="reserved", tokens=9)], fresh=True)
    assert await totals(store) == (0, 0, 0)
    assert await drift(store) == []


async def test_a_failed_transaction_leaves_neither_records_nor_sums(store):
    async def write_and_fail():
        async with store.write() as connection:
            await write(connection, [make_record()], fresh=True)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_and_fail()
    assert await fetch(store, "SELECT count(*) FROM usage_records") == [(0,)]
    assert await totals(store) == (0, 0, 0)


async def test_writers_that_race_with_the_same_records_count_each_once(settings, store):
    chance = random.Random(3)
    base = [make_record(tokens=1, key_id=f"key-{index % 7}") for index in range(300)]
    other = await Store.open(settings)

    async def flusher(one):
        for _ in range(8):
            sample = chance.sample(base, 120)
            records = [
                msgspec.structs.replace(record, state=chance.choice(["reserved", "completed"])) for record in sample
            ]
            await put(one, records, [settlement(record) for record in chance.sample(base, 30)])

    await asyncio.gather(flusher(store), flusher(other), flusher(store), flusher(other))
    await put(store, base)
    await other.close()
    assert (await totals(store))[:2] == (300, 300)
    assert await drift(store) == []


async def test_a_rebuild_corrects_wrong_sums_and_says_which(store):
    today = day_of(make_record().received_at)
    await put(store, [make_record(tokens=3), make_record(tokens=4)], fresh=True)
    async with store.write() as connection:
        await connection.exec_driver_sql("UPDATE usage_daily SET tokens = 1000")
        await connection.exec_driver_sql(
            "INSERT INTO usage_daily SELECT '1999-01-01', project, key_id, model, state, organisation, requests, "
            "tokens, pixels, rows, bytes_in, bytes_out, total_ns, queue_ns, compute_ns, cache_hits, cost_pico_usd, "
            "billed_pico_usd FROM usage_daily"
        )
    wrong = {row["day"]: row for row in await drift(store)}
    assert wrong.keys() == {"1999-01-01", today}
    assert wrong["1999-01-01"]["after"] is None
    assert (wrong[today]["before"]["tokens"], wrong[today]["after"]["tokens"]) == (1000, 7)
    assert await drift(store) == []


async def test_what_a_gateway_left_open_is_found(store):
    kept = [
        make_record(state="reserved", gateway_id="dead", received_at=1_000_000),
        make_record(state="completed", gateway_id="dead"),
    ]
    others = [make_record(state="reserved", gateway_id="alive"), make_record(settled=True, gateway_id="dead")]
    await put(store, [*kept, *others], fresh=True)
    async with store.read() as connection:
        assert await open_records(connection, "dead", 10) == sorted(kept, key=lambda record: record.usage_id)
        assert await abandoned(connection, 2_000_000, 10) == [kept[0]]


async def test_sums_by_every_group_over_days_and_projects(store):
    noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone.utc)
    for day in range(4):
        instant = int((noon + dt.timedelta(days=day)).timestamp() * 1e6)
        await put(
            store,
            [
                make_record(received_at=instant, project="a", key_id="k1", model="x", tokens=10, cost_pico_usd=570),
                make_record(received_at=instant, project="b", key_id="k2", model="y", tokens=1, billed_pico_usd=3),
                make_record(received_at=instant, project="b", key_id="k2", model="x", state="failed", tokens=500),
            ],
        )
    async with store.read() as connection:
        by_model = await summary(connection, "model")
        by_day = await summary(connection, "day", since=dt.date(2026, 3, 2), until=dt.date(2026, 3, 3))
        by_key = await summary(connection, "key", project="b")
        by_project = await summary(connection, "project", since=dt.date(2026, 3, 4))
    assert [(row["model"], row["requests"], row["failed"], row["tokens"]) for row in by_model] == [
        ("x", 8, 4, 40),
        ("y", 4, 0, 4),
    ]
    assert by_model[0]["cost_usd"] == Decimal("0.00000000228")
    assert [row["day"] for row in by_day] == ["2026-03-02", "2026-03-03"]
    assert [(row["key"], row["project"], row["requests"]) for row in by_key] == [("k2", "b", 8)]
    assert [(row["project"], row["billed_usd"]) for row in by_project] == [("a", 0), ("b", Decimal("3E-12"))]


async def test_the_latest_records_newest_first(store):
    records = [make_record(model=("x", "y")[index % 2], project=("a", "b")[index // 3]) for index in range(6)]
    await put(store, records, fresh=True)
    ids = [record.usage_id for record in records]
    async with store.read() as connection:
        assert [row["usage_id"] for row in await latest(connection, 3)] == ids[:2:-1]
        assert [row["usage_id"] for row in await latest(connection, 9, model="x", project="a")] == [ids[2], ids[0]]
        (row,) = await latest(connection, 1)
    assert row["received_at"].endswith("+00:00")
    assert row["key"] == "key"


@pytest.mark.parametrize(
    ("text", "day"),
    [("2026-02-28", dt.date(2026, 2, 28)), ("today", dt.date(2026, 3, 1)), ("2d", dt.date(2026, 2, 27))],
)
def test_days_as_people_write_them(text, day):
    assert parse_day(text, dt.date(2026, 3, 1)) == day


@pytest.mark.parametrize("text", ["", "yesterday", "2026-02-30", "2026-2-3", "-1d", "7", "2026-03-01T00:00"])
def test_what_is_no_day_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_day(text, dt.date(2026, 3, 1))


async def test_totals_by_model_follow_every_change(store):
    first, second = make_record(state="reserved", rows=4), make_record(model="qa", rows=2)
    await put(store, [first, second])
    async with store.read() as connection:
        assert await usage_totals.recorded(connection) == {
            "sentiment": RecordedRows(reserved=4),
            "qa": RecordedRows(completed=2),
        }
    await put(store, [msgspec.structs.replace(first, state="unknown")])
    await put(store, [msgspec.structs.replace(first, state="completed", rows=3)])
    await put(store, [msgspec.structs.replace(first, state="completed", rows=3)])
    await put(store, [make_record(state="client_closed", rows=5), make_record(state="failed", rows=6)])
    async with store.read() as connection:
        assert (await usage_totals.recorded(connection))["sentiment"] == RecordedRows(completed=3, other=11)


async def test_totals_are_made_anew_from_the_records(store):
    await put(store, [make_record(rows=4), make_record(state="reserved", rows=1)])
    async with store.write() as connection:
        assert await usage_totals.rebuild(connection) == []
        await connection.exec_driver_sql("UPDATE usage_totals SET rows = 9 WHERE state = 'completed'")
        (wrong,) = await usage_totals.rebuild(connection)
        assert (wrong["state"], wrong["before"], wrong["after"]) == ("completed", (1, 9), (1, 4))
        assert await usage_totals.rebuild(connection) == []


async def test_totals_are_there_after_an_upgrade(store):
    await put(store, [make_record(rows=4), make_record(rows=1), make_record(model="qa", state="failed", rows=2)])
    await store.migrate("0001")
    await store.migrate()
    async with store.write() as connection:
        assert await usage_totals.recorded(connection) == {
            "sentiment": RecordedRows(completed=5),
            "qa": RecordedRows(other=2),
        }
        assert await usage_totals.rebuild(connection) == []
