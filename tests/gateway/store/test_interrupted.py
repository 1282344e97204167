"""A gateway killed in the middle of a migration: the next one finds all of it or nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
import sqlalchemy as sa

from gateway.store.database import Store
from gateway.store.tables import metadata

KILLED_AT = """
import asyncio, os, signal, sys
import sqlalchemy as sa
from gateway.settings import Settings
from gateway.store.database import Store

def die(_connection, _cursor, statement, *_rest):
    if sys.argv[1] in statement:
        os.kill(os.getpid(), signal.SIGKILL)

sa.event.listen(sa.engine.Engine, "after_cursor_execute", die)
asyncio.run(Store.open(Settings()))
"""


@pytest.mark.parametrize("statement", ["CREATE TABLE usage_records", "CREATE TABLE usage_totals"])
async def test_a_migration_killed_half_way_is_done_again(settings, statement):
    environment = {**os.environ, "TIDEGATE_DATA_DIR": str(settings.data_dir)}
    if settings.database_url is not None:
        environment["TIDEGATE_DATABASE_URL"] = settings.database_url.get_secret_value()
    command = [sys.executable, "-c", KILLED_AT, statement]
    killed = await asyncio.to_thread(subprocess.run, command, env=environment)
    assert killed.returncode == -9
    store = await Store.open(settings)
    try:
        async with store.read() as connection:
            names = await connection.run_sync(lambda sync: set(sa.inspect(sync).get_table_names()))
        assert names == {*metadata.tables, "alembic_version"}
    finally:
        await store.close()
