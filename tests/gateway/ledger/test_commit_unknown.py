"""PostgreSQL commits and its answer is lost, as in a failover: nobody knows, and the books are right all the same."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from gateway.ledger.ledger import Ledger
from gateway.settings import Settings
from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage_daily import rebuild_daily
from tests.gateway.ledger.proxies import LosesCommits, before
from tests.gateway.ledger.support import fetch, make_call, make_prices, until

pytestmark = pytest.mark.database


async def test_a_commit_whose_answer_is_lost_makes_one_record(tmp_path, postgresql, triton):
    proxy = LosesCommits()
    async with before(postgresql, tmp_path, proxy, postgresql.create_database()) as url:
        settings = Settings(data_dir=tmp_path / "data", database_url=SecretStr(url))
        store = await Store.open(settings)
        ledger = Ledger(settings, store, make_prices(), triton.statistics, interval_s=0.02)
        await ledger.start()
        try:
            for losses in (1, 2):
                proxy.losses = losses
                for _ in range(40):
                    call = make_call(tokens=2)
                    await ledger.reserve(call)
                    await ledger.finish(call, "completed", 200)
                    await asyncio.sleep(0.002)
                await until(lambda losses=losses: proxy.lost == losses, 30)
            await until(lambda: ledger.spooled_bytes == 0, 30)
        finally:
            await ledger.stop()
        counted = await fetch(store, "SELECT state, count(*), sum(tokens) FROM usage_records GROUP BY state")
        assert [tuple(map(str, row)) for row in counted] == [("completed", "80", "160")]
        async with store.write() as connection:
            assert await rebuild_daily(connection) == []
            assert await usage_totals.rebuild(connection) == []
        await store.close()
