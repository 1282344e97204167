"""Sums and records of the day before, compared once a day: on both databases, against every way to be wrong."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest

from gateway.ledger.daily import DailyCheck
from gateway.store.usage import write
from gateway.store.usage_daily import compare_day
from tests.gateway.access.support import statements
from tests.gateway.ledger.support import fetch, make_record, until

DAY = dt.date(2026, 11, 22)
NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.timezone.utc).timestamp()
DAY_BEGINS = int(dt.datetime(2026, 11, 22, tzinfo=dt.timezone.utc).timestamp())


def record_at(second: float, number: int = 0, **values):
    """A record received this many seconds after the day began, with the id that it would have."""
    milliseconds = int((DAY_BEGINS + second) * 1000)
    digits = f"{milliseconds:012x}"
    usage_id = f"{digits[:8]}-{digits[8:]}-7000-8000-{number:012x}"
    return make_record(usage_id=usage_id, received_at=milliseconds * 1000, **values)


RECORDS = [
    record_at(0, tokens=3), record_at(86_399.999, tokens=4), record_at(40_000, project="b", key_id="k2", model="qa"),
    record_at(40_000, 1, state="failed"), record_at(50_000, state="reserved"), record_at(60_000, cost_pico_usd=570),
]  # fmt: skip
NEIGHBOURS = [record_at(-0.001, tokens=100), record_at(86_400, tokens=100)]


@pytest.fixture
async def filled(store):
    async with store.write() as connection:
        await write(connection, [*RECORDS, *NEIGHBOURS])
    return store


async def compared(store):
    async with store.read() as connection:
        return await compare_day(connection, DAY)


async def execute(store, *statements):
    async with store.write() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def test_sums_and_records_of_a_day_agree(filled):
    assert await compared(filled) == []


async def test_a_day_without_anything_agrees(store):
    assert await compared(store) == []


async def test_a_record_that_changed_its_state_leaves_nothing_behind(filled):
    ended = msgspec.structs.replace(RECORDS[4], state="completed", tokens=2)
    async with filled.write() as connection:
        await write(connection, [msgspec.structs.replace(RECORDS[4], state="unknown")])
        await write(connection, [ended])
    assert await compared(filled) == []


async def test_a_changed_sum_is_found_in_its_table(filled):
    await execute(filled, "UPDATE usage_daily SET tokens = 9 WHERE day = '2026-11-22' AND model = 'qa'")
    (wrong,) = await compared(filled)
    assert (wrong["model"], wrong["key_id"]) == ("qa", "k2")
    assert (wrong["before"]["tokens"], wrong["after"]["tokens"]) == (9, 0)
    await execute(filled, "UPDATE usage_daily SET tokens = 0 WHERE model = 'qa'")
    await execute(filled, "UPDATE usage_daily_models SET billed_pico_usd = 1 WHERE day = '2026-11-22' AND model = 'qa'")
    (wrong,) = await compared(filled)
    assert "key_id" not in wrong


async def test_a_lost_sum_a_lost_record_and_an_invented_sum_are_found(filled):
    await execute(filled, "DELETE FROM usage_daily WHERE day = '2026-11-22' AND model = 'qa'")
    (wrong,) = await compared(filled)
    assert wrong["before"] is None
    await execute(filled, f"DELETE FROM usage_records WHERE usage_id = '{RECORDS[0].usage_id}'")
    wrong = await compared(filled)
    assert len(wrong) == 3  # the one from before, and one in either table
    assert {row["before"]["requests"] - row["after"]["requests"] for row in wrong if row["before"]} == {1}


async def test_other_days_are_not_looked_at(filled):
    await execute(filled, "UPDATE usage_daily SET tokens = 1 WHERE day <> '2026-11-22'")
    assert await compared(filled) == []


@pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True)  # PostgreSQL reads small tables whole
async def test_ten_million_records_of_other_days_cost_nothing(filled):
    with statements(filled) as seen:
        await compared(filled)
    asked = [statement for statement in seen if "usage_records" in statement]
    assert len(asked) == 2
    async with filled.read() as connection:
        for statement in asked:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("",) * statement.count("?"))
            steps = [step[-1] for step in plan if "usage_records" in step[-1]]
            assert steps
            assert all(step.startswith("SEARCH usage_records USING") for step in steps), steps


async def test_it_is_done_once_a_day_and_says_how_many(filled):
    now = [NOON]
    check = DailyCheck(filled, clock=lambda: now[0])
    await check.check()
    assert (check.checked, check.wrong) == (DAY, 0)
    await execute(filled, "UPDATE usage_daily SET requests = 7 WHERE day = '2026-11-22' AND model = 'qa'")
    await check.check()
    assert check.wrong == 0  # this day was compared
    again = DailyCheck(filled, clock=lambda: NOON)
    await again.check()
    assert again.wrong == 1
    now[0] += 86_400
    await check.check()
    assert (check.checked, check.wrong) == (DAY + dt.timedelta(days=1), 0)


async def test_it_runs_in_the_background_and_outlives_a_failure(filled):
    await execute(filled, "ALTER TABLE usage_daily RENAME TO elsewhere")
    check = DailyCheck(filled, clock=lambda: NOON, every_s=0.01)
    await check.start()
    try:
        await execute(filled, "ALTER TABLE elsewhere RENAME TO usage_daily")
        await until(lambda: check.checked == DAY)
    finally:
        await check.stop()
    assert await fetch(filled, "SELECT 1") == [(1,)]
