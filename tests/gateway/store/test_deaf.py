"""A PostgreSQL that takes connections and questions and never answers: nobody waits for it for ever."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from gateway.errors import Unavailable
from gateway.ledger.ledger import Ledger
from gateway.settings import Settings
from gateway.store import database
from gateway.store.database import Store
from tests.gateway.ledger.proxies import Deaf, before
from tests.gateway.ledger.support import CountingTriton, make_call, make_prices, until

pytestmark = pytest.mark.database


@pytest.fixture
async def deaf():
    return Deaf()


@pytest.fixture
async def settings(tmp_path, postgresql, deaf, monkeypatch):
    """Of a database behind the proxy, for whose answers nobody waits long."""
    monkeypatch.setattr(database, "_STATEMENT_S", 0.3)
    async with before(postgresql, tmp_path, deaf, postgresql.create_database()) as url:
        yield Settings(data_dir=tmp_path / "data", database_url=url)


@pytest.fixture
async def store(settings):
    store = await Store.open(settings, wait=True)
    yield store
    await store.close()


async def test_whoever_waits_for_an_answer_is_told_that_there_is_none(store, deaf):
    deaf.on = True
    for transaction in (store.read, store.write):
        with pytest.raises(Unavailable):
            async with transaction() as connection:
                await connection.execute(sa.text("SELECT 1"))
    deaf.on = False
    assert await store.ping()


async def test_an_answer_that_stays_away_in_the_middle_is_none(store, deaf):
    async def write() -> None:
        async with store.write() as connection:
            await connection.execute(sa.text("SELECT 1"))
            deaf.on = True  # the answer to the commit

    with pytest.raises(Unavailable):
        await write()
    deaf.on = False
    assert await store.ping()


async def test_what_may_take_its_time_is_given_it(store):
    async with store.read(patient=True) as connection:
        assert (await connection.execute(sa.text("SELECT 1 FROM pg_sleep(1)"))).scalar() == 1
    with pytest.raises(Unavailable):
        async with store.read() as connection:
            await connection.execute(sa.text("SELECT pg_sleep(1)"))


async def test_a_deaf_database_at_the_start_is_waited_for(settings, deaf):
    deaf.on = True
    store = await Store.open(settings, wait=True)
    try:
        assert store.problem is not None
        deaf.on = False
        await until(lambda: store.problem is None)
        assert await store.ping()
    finally:
        await store.close()


async def test_the_ledger_goes_on_and_writes_all_when_it_is_heard_again(settings, store, deaf):
    ledger = Ledger(settings, store, make_prices(), CountingTriton().statistics, interval_s=0.02)
    await ledger.start()

    async def serve(number):
        for _ in range(number):
            call = make_call()
            await ledger.reserve(call)
            await ledger.finish(call, "completed", 200)

    try:
        await serve(10)
        await until(lambda: ledger.metered == 10)
        deaf.on = True
        await serve(10)
        with pytest.raises(Unavailable):
            await ledger.flush()
        assert ledger.available
        deaf.on = False
        await until(lambda: ledger.metered == 20, 60)
    finally:
        await ledger.stop()
