"""Fixtures of the ledger's tests: the store on both databases, and ledgers on it."""

from __future__ import annotations

import pytest

from gateway.ledger.ledger import Ledger
from gateway.store.database import Store
from tests.gateway.ledger.postgres import PostgreSQL, programs
from tests.gateway.ledger.support import CountingTriton, make_prices, make_settings


@pytest.fixture(scope="session")
def postgresql(require_program):
    """A running PostgreSQL, shared by the tests of this process."""
    server = PostgreSQL(programs(require_program))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def settings(request, tmp_path):
    """Settings with an empty database; everything that uses this runs on SQLite and on PostgreSQL."""
    values = {}
    if request.param == "postgresql":
        values["database_url"] = request.getfixturevalue("postgresql").create_database()
    return make_settings(tmp_path, **values)


@pytest.fixture
async def store(settings):
    store = await Store.open(settings)
    yield store
    await store.close()


@pytest.fixture
def triton():
    triton = CountingTriton()
    triton.infer("sentiment", 0)
    return triton


@pytest.fixture
async def make_ledger(settings, store, triton):
    """Starts ledgers; stops those that still run at the end."""
    ledgers = []

    async def make(*, interval_s=3600.0, **changes):
        used = settings.model_copy(update=changes)
        ledger = Ledger(used, store, make_prices(), triton.statistics, interval_s=interval_s)
        await ledger.start()
        ledgers.append(ledger)
        return ledger

    yield make
    for ledger in ledgers:
        await ledger.stop()
