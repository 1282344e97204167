"""PostgreSQL commits and its answer is lost, as in a failover: nobody knows, and the books are right all the same."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from pydantic import SecretStr

from gateway.ledger.ledger import Ledger
from gateway.settings import Settings
from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage_daily import rebuild_daily
from tests.gateway.ledger.support import fetch, make_call, make_prices, until

pytestmark = pytest.mark.database


class LosesCommits:
    """A proxy before PostgreSQL's socket that swallows the answers to the first ``losses`` commits, and hangs up."""

    def __init__(self, target: str, losses: int) -> None:
        self._target = target
        self.losses = losses
        self.lost = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_unix_connection(self._target)
        swallow = asyncio.Event()

        async def up() -> None:
            while data := await reader.read(65536):
                if b"COMMIT" in data and self.lost < self.losses:
                    self.lost += 1
                    swallow.set()
                upstream.write(data)
                await upstream.drain()

        async def down() -> None:
            while data := await upstream_reader.read(65536):
                if swallow.is_set():  # PostgreSQL has answered: it has committed
                    return
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (writer, upstream):
            stream.close()
            with contextlib.suppress(OSError):
                await stream.wait_closed()


async def test_a_commit_whose_answer_is_lost_makes_one_record(tmp_path, postgresql, triton):
    url = postgresql.create_database()
    proxy = LosesCommits(f"{postgresql.folder}/.s.PGSQL.5432", losses=0)
    server = await asyncio.start_unix_server(proxy, tmp_path / ".s.PGSQL.5432")
    through = url.replace(str(postgresql.folder), str(tmp_path))
    settings = Settings(data_dir=tmp_path / "data", database_url=SecretStr(through))
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
    server.close()
