"""Fixtures of the ledger's tests: ledgers on the store of both databases."""

import pytest

from gateway.ledger.ledger import Ledger
from tests.gateway.ledger.support import CountingTriton, make_prices
from tests.gateway.servers import (  # noqa: F401
    migrated_postgresql,
    migrated_settings,
    migrated_sqlite,
    own_postgresql,
    postgresql,
    store,
)


@pytest.fixture
def settings(migrated_settings):  # noqa: F811
    """Settings with an empty database; everything that uses this runs on SQLite and on PostgreSQL."""
    return migrated_settings


@pytest.fixture
def triton():
    triton = CountingTriton()
    triton.infer("sentiment", 0)
    return triton


@pytest.fixture
async def make_ledger(settings, store, triton):  # noqa: F811
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
