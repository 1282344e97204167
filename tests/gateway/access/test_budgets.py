from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter

import pytest
import sqlalchemy as sa

from gateway.access.audit import Audit
from gateway.access.budgets import Budgets
from gateway.access.key import KeySpec
from gateway.access.keys import Keys
from gateway.access.policy import PICO, Budget, Policies
from gateway.errors import BudgetExceeded, GatewayError, Unavailable
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.tables import budget_leases, budget_windows, usage_daily
from tests.gateway.access.support import make_principal, statements
from tests.gateway.ledger.proxies import LosesCommits, before

DAY = 86_400


@pytest.fixture
def make_budgets(store, policies, clock, wall):
    return lambda name="gateway", **values: Budgets(store, policies, name, clock=clock, wall_clock=wall, **values)


@pytest.fixture
def budgets(make_budgets):
    return make_budgets()


@pytest.fixture
async def set_budget(policies, keys):
    async def set_(usd, level="project", name="web", period="day"):
        await policies.set_budget(Budget(level, name, period, round(usd * PICO)))

    return set_


async def reserve_many(budgets, number, usd, principal=None):
    """Reservations made at the same time, and how the others were refused."""
    principal = principal or make_principal()
    answers = await asyncio.gather(*(budgets.reserve(principal, usd) for _ in range(number)), return_exceptions=True)
    failures = Counter(type(answer) for answer in answers if isinstance(answer, BaseException))
    return [answer for answer in answers if not isinstance(answer, BaseException)], failures


async def standing(store):
    """Spent and leased of every window, in pico-USD."""
    table = budget_windows
    async with store.read() as connection:
        rows = await connection.execute(sa.select(table).order_by(table.c.level, table.c.name, table.c.window))
        return {(row.level, row.name, row.window): (row.spent_pico_usd, row.leased_pico_usd) for row in rows}


async def test_no_budget_no_reservation(budgets, store):
    with statements(store) as seen:
        assert await budgets.reserve(make_principal(), 5.0) is None
    assert seen == []


async def test_of_100_at_once_with_a_budget_for_one_one_passes(budgets, set_budget, store):
    await set_budget(1.0)
    passed, failures = await reserve_many(budgets, 100, 1.0)
    assert (len(passed), failures) == (1, {BudgetExceeded: 99})
    budgets.settle(passed[0], 1.0)
    await budgets.flush()
    passed, failures = await reserve_many(budgets, 100, 1.0)
    assert (len(passed), failures) == (0, {BudgetExceeded: 100})
    assert await standing(store) == {("project", "web", "2026-11-23"): (PICO, 0)}


async def test_several_gateways_at_once_never_overspend(make_budgets, set_budget, store):
    await set_budget(1.0)
    gateways = [make_budgets(f"gateway{number}") for number in range(4)]
    results = await asyncio.gather(*(reserve_many(gateway, 100, 0.01) for gateway in gateways))
    spent = 0.0
    for gateway, (passed, failures) in zip(gateways, results, strict=True):
        assert set(failures) <= {BudgetExceeded}
        for reservation in passed:
            gateway.settle(reservation, 0.01)
            spent += 0.01
        await gateway.flush(give_back=True)
    assert 0.97 <= spent <= 1.0 + 1e-9  # a lease's rest may lie idle, none is spent twice
    assert (await standing(store))["project", "web", "2026-11-23"] == (round(spent * PICO), 0)


async def test_most_requests_cost_no_statement(budgets, set_budget, store):
    await set_budget(100.0)
    await reserve_many(budgets, 1, 0.001)
    with statements(store) as seen:
        passed, _ = await reserve_many(budgets, 1000, 0.001)
    assert len(passed) == 1000
    assert seen == []


async def test_a_refusal_costs_no_statement(budgets, set_budget, store, clock):
    await set_budget(0.5)
    await reserve_many(budgets, 1, 1.0)
    with statements(store) as seen:
        _, failures = await reserve_many(budgets, 100, 1.0)
    assert failures == {BudgetExceeded: 100}
    assert seen == []
    clock.forward(2)
    with statements(store) as seen:
        await reserve_many(budgets, 1, 1.0)
    assert seen


async def test_what_a_request_did_not_cost_is_there_again(budgets, set_budget):
    await set_budget(1.0)
    for _ in range(10):
        reservation = await budgets.reserve(make_principal(), 0.5)
        budgets.settle(reservation, 0.05)
        budgets.settle(reservation, 0.05)  # settled once
    await budgets.flush()
    assert [state.spent_pico_usd for state in await budgets.states()] == [PICO // 2]


async def test_what_a_request_cost_more_is_counted(budgets, set_budget, store, clock):
    await set_budget(1.0)
    reservation = await budgets.reserve(make_principal(), 0.1)
    budgets.settle(reservation, 0.95)
    await budgets.flush()
    assert (await standing(store))["project", "web", "2026-11-23"][0] == round(0.95 * PICO)
    passed, _ = await reserve_many(budgets, 1, 0.1)
    assert passed == []


async def test_every_level_counts_and_the_tightest_wins(budgets, set_budget, keys):
    issued = await keys.create(KeySpec("web"))
    await set_budget(100, "organisation", "acme", "month")
    await set_budget(10, "project", "web")
    await set_budget(2, "key", issued.key.key_id)
    assert len((await reserve_many(budgets, 50, 1.0, make_principal(issued.key.key_id)))[0]) == 2
    assert len((await reserve_many(budgets, 50, 1.0, make_principal("other")))[0]) == 8
    assert len((await reserve_many(budgets, 5, 1.0, make_principal("x", "shop")))[0]) == 5
    assert len((await reserve_many(budgets, 5, 1.0, make_principal("x", "shop", "else")))[0]) == 5


async def test_a_refusal_by_one_level_holds_nothing_in_the_others(budgets, set_budget, keys, store):
    await set_budget(100, "organisation", "acme")
    await set_budget(0, "project", "web")
    await reserve_many(budgets, 10, 1.0)
    await budgets.flush(give_back=True)
    assert all(leased == 0 for _, leased in (await standing(store)).values())


async def test_test_keys_are_never_billed(budgets, set_budget):
    await set_budget(0)
    assert await budgets.reserve(make_principal(test=True), 1.0) is None


async def test_a_request_without_an_estimate_reserves_the_floor(make_budgets, set_budget):
    await set_budget(1.0)
    passed, failures = await reserve_many(make_budgets(floor_usd=0.1), 100, 0.0)
    assert (len(passed), failures) == (10, {BudgetExceeded: 90})


async def test_a_new_day_is_a_new_budget(budgets, set_budget, store, clock, wall):
    await set_budget(1.0)
    await set_budget(1.5, period="month")
    passed, _ = await reserve_many(budgets, 5, 1.0)
    assert len(passed) == 1
    wall.forward(DAY)
    clock.forward(DAY)
    budgets.settle(passed[0], 1.0)  # begun yesterday: yesterday's money
    later, _ = await reserve_many(budgets, 5, 0.5)
    assert len(later) == 1  # the month has 1.5
    budgets.settle(later[0], 0.5)
    await budgets.flush(give_back=True)
    assert await standing(store) == {
        ("project", "web", "2026-11-23"): (PICO, 0),
        ("project", "web", "2026-11-24"): (PICO // 2, 0),
        ("project", "web", "2026-11"): (PICO + PICO // 2, 0),
    }


async def test_a_budget_raised_counts_at_once(budgets, set_budget):
    await set_budget(0.5)
    assert (await reserve_many(budgets, 1, 1.0))[0] == []
    await set_budget(5.0)
    assert len((await reserve_many(budgets, 1, 1.0))[0]) == 1


async def test_a_budget_lowered_counts_at_once(budgets, make_budgets, set_budget, store):
    await set_budget(6400.0)
    for gateway in (budgets, make_budgets("other")):
        gateway.settle(await gateway.reserve(make_principal(), 1.0), 1.0)  # each has leased a hundred
    await set_budget(1.0)
    assert await reserve_many(budgets, 100, 1.0) == ([], {BudgetExceeded: 100})
    await gateway.flush()  # nobody asks for anything there
    await budgets.flush()
    assert await standing(store) == {("project", "web", "2026-11-23"): (2 * PICO, 0)}


async def test_what_is_in_flight_when_a_budget_is_lowered_is_not_spent_again(budgets, set_budget, store):
    await set_budget(6400.0)
    passed, _ = await reserve_many(budgets, 99, 1.0)
    await set_budget(10.0)
    for reservation in passed:
        budgets.settle(reservation, 0.01)
    assert len((await reserve_many(budgets, 100, 1.0))[0]) == 9
    await set_budget(12.0)
    assert len((await reserve_many(budgets, 100, 1.0))[0]) == 2
    await budgets.flush()
    spent, leased = (await standing(store))["project", "web", "2026-11-23"]
    assert (spent, spent + leased <= 12 * PICO) == (99 * PICO // 100, True)


async def test_what_a_request_cost_beyond_its_estimate_is_hidden_from_no_gateway(make_budgets, set_budget, store):
    await set_budget(1.0)
    one, two = make_budgets("one"), make_budgets("two")
    one.settle(await one.reserve(make_principal(), 0.1), 0.95)
    await one.flush()
    assert await standing(store) == {("project", "web", "2026-11-23"): (95 * PICO // 100, 0)}
    assert (await reserve_many(two, 1, 0.1))[0] == []


async def test_idle_leases_are_given_back(budgets, make_budgets, set_budget, store):
    await set_budget(64.0)
    reservation = await budgets.reserve(make_principal(), 0.5)
    budgets.settle(reservation, 0.5)
    for _ in range(2):
        await budgets.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (PICO // 2, 0)
    async with store.read() as connection:
        assert (await connection.execute(sa.select(budget_leases))).all() == []
    assert await make_budgets("other").reserve(make_principal(), 63.5) is not None


async def test_a_gateway_that_died_has_spent_its_lease_until_the_ledger_knows(
    make_budgets, set_budget, store, clock, wall
):
    await set_budget(10.0)
    dead, alive = make_budgets("dead"), make_budgets("alive")
    reservation = await dead.reserve(make_principal(), 4.0)
    dead.settle(reservation, 4.0)  # never written: killed
    assert (await reserve_many(alive, 1, 7.0))[0] == []
    wall.forward(61)
    clock.forward(61)
    await alive.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (4 * PICO, 0)
    texts = {"day": "2026-11-23", "project": "web", "key_id": "key", "model": "m", "state": "completed",
             "organisation": "acme"}  # fmt: skip
    values = {column.name: 0 for column in usage_daily.c} | texts | {"billed_pico_usd": 3 * PICO}
    async with store.write() as connection:
        await connection.execute(sa.insert(usage_daily).values(**values))
    wall.forward(61)
    clock.forward(61)
    await alive.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (3 * PICO, 0)
    assert len((await reserve_many(alive, 1, 7.0))[0]) == 1


async def test_a_lost_lease_is_recounted_by_whoever_is_there(make_budgets, set_budget, store, clock, wall):
    await set_budget(10.0)
    dead, alive = make_budgets("dead"), make_budgets("alive")
    await dead.reserve(make_principal(), 4.0)
    wall.forward(61)
    await alive.flush()  # and is restarted
    successor = make_budgets("successor")
    await successor.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (4 * PICO, 0)
    wall.forward(61)
    for _ in range(2):
        await successor.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (0, 0)


async def test_yesterdays_lost_lease_leaves_todays_alone(make_budgets, set_budget, store, clock, wall):
    await set_budget(10.0)
    slow, other = make_budgets("slow"), make_budgets("other")
    await slow.reserve(make_principal(), 4.0)
    wall.forward(DAY)
    await other.flush()
    await slow.reserve(make_principal(), 4.0)
    await slow.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (4 * PICO, 0)
    assert (await standing(store))["project", "web", "2026-11-24"] == (0, 4 * PICO)
    assert len((await reserve_many(slow, 10, 1.0))[0]) == 6
    await slow.stop()
    assert (await standing(store))["project", "web", "2026-11-24"] == (0, 10 * PICO)  # all of it is in flight


async def test_a_write_that_is_cancelled_anywhere_is_made_once(budgets, set_budget, store):
    await set_budget(100.0)
    spent = 0
    for steps in range(60):
        amount = 1 + steps % 7
        reservation = await budgets.reserve(make_principal(), amount / 100)
        budgets.settle(reservation, amount / 100)
        spent += amount
        writing = asyncio.ensure_future(budgets.flush(give_back=steps % 3 == 0))
        for _ in range(steps):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await budgets.stop()
    assert await standing(store) == {("project", "web", "2026-11-23"): (spent * PICO // 100, 0)}


@pytest.mark.database
async def test_a_write_whose_commit_is_not_known_is_made_once(tmp_path, postgresql, clock, wall):
    proxy = LosesCommits()
    async with before(postgresql, tmp_path, proxy, postgresql.create_database()) as url:
        settings = Settings(data_dir=tmp_path, database_url=url)
        store = await Store.open(settings)
        audit = Audit(store, settings)
        await Keys(store, audit, settings).ensure_project("web", "acme")
        policies = Policies(store, audit)
        await policies.set_budget(Budget("project", "web", "day", 64 * PICO))
        budgets = Budgets(store, policies, "gateway", clock=clock, wall_clock=wall)

        async def with_a_commit_lost(work):
            proxy.losses += 1
            with pytest.raises(Unavailable):
                await work
            assert proxy.lost == proxy.losses

        try:
            await with_a_commit_lost(budgets.reserve(make_principal(), 0.25))  # it has leased a dollar all the same
            reservation = await budgets.reserve(make_principal(), 0.25)
            assert (await standing(store))["project", "web", "2026-11-23"] == (0, PICO)
            budgets.settle(reservation, 0.25)
            await with_a_commit_lost(budgets.flush())
            assert (await standing(store))["project", "web", "2026-11-23"] == (PICO // 4, 3 * PICO // 4)
            await with_a_commit_lost(budgets.flush(give_back=True))
            await budgets.flush(give_back=True)
            assert (await standing(store))["project", "web", "2026-11-23"] == (PICO // 4, 0)
            budgets.settle(await budgets.reserve(make_principal(), 0.25), 0.25)
            await budgets.stop()
            assert (await standing(store))["project", "web", "2026-11-23"] == (PICO // 2, 0)
        finally:
            await store.close()


async def test_a_gateway_that_stood_still_too_long_starts_anew(make_budgets, set_budget, store, clock, wall):
    await set_budget(10.0)
    slow, other = make_budgets("slow"), make_budgets("other")
    reservation = await slow.reserve(make_principal(), 4.0)
    wall.forward(61)
    clock.forward(61)
    await other.flush()  # counts the lease as spent
    slow.settle(reservation, 4.0)
    await slow.flush()
    assert (await standing(store))["project", "web", "2026-11-23"] == (4 * PICO, 0)
    assert len((await reserve_many(slow, 10, 1.0))[0]) == 6


@pytest.mark.parametrize("step", [-40 * DAY, -DAY, -3600, 3600, DAY, 40 * DAY])
async def test_a_wall_clock_that_is_stepped_overspends_no_day(make_budgets, set_budget, store, clock, wall, step):
    """Two gateways, one clock: whatever it shows, no window is spent twice, and the day it returns to is as it was."""
    await set_budget(1.0)
    one, two = make_budgets("one"), make_budgets("two")
    spent = {}

    async def spend(budgets, number=40, usd=0.1):
        day = dt.datetime.fromtimestamp(wall(), dt.timezone.utc).date().isoformat()
        passed, failures = await reserve_many(budgets, number, usd)
        assert set(failures) <= {BudgetExceeded}
        for reservation in passed:
            budgets.settle(reservation, usd)
        spent[day] = spent.get(day, 0) + len(passed)

    await spend(one, number=4)
    wall.forward(step)
    clock.forward(1)
    await two.flush()
    await spend(two)
    await spend(one)
    wall.forward(-step)
    clock.forward(1)
    await two.flush()
    await one.flush()
    clock.forward(2)
    await spend(one)
    await spend(two)
    for budgets in (one, two):
        await budgets.flush(give_back=True)
    assert all(count <= 10 for count in spent.values()), spent
    for (_, _, window), (paid, _) in (await standing(store)).items():
        assert round(spent[window] * 0.1 * PICO) <= paid <= PICO


async def test_start_and_stop_write_everything(budgets, set_budget, store):
    await set_budget(1.0)
    await budgets.start()
    budgets.settle(await budgets.reserve(make_principal(), 0.5), 0.25)
    await budgets.stop()
    assert (await standing(store))["project", "web", "2026-11-23"] == (PICO // 4, 0)


@pytest.mark.database
async def test_without_the_database_a_lease_lasts_and_then_nothing_passes(tmp_path, own_postgresql, clock, wall):
    settings = Settings(data_dir=tmp_path, database_url=own_postgresql.create_database())
    store = await Store.open(settings)
    audit = Audit(store, settings)
    await Keys(store, audit, settings).ensure_project("web", "acme")
    policies = Policies(store, audit)
    await policies.set_budget(Budget("project", "web", "day", 64 * PICO))
    budgets = Budgets(store, policies, "gateway", clock=clock, wall_clock=wall)
    try:
        reservation = await budgets.reserve(make_principal(), 0.25)
        own_postgresql.stop()
        passed, failures = await reserve_many(budgets, 8, 0.25)
        assert (len(passed), set(failures)) == (3, {Unavailable})
        for held in (reservation, *passed):
            budgets.settle(held, 0.25)
        with pytest.raises(GatewayError):
            await budgets.flush()
        own_postgresql.start()
        await budgets.flush()
        assert (await standing(store))["project", "web", "2026-11-23"][0] == PICO
    finally:
        await store.close()
