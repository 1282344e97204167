"""The store opens, migrates and fails as promised, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import stat

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DBAPIError, IntegrityError

from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.store.database import Store, StoreError, database_url
from gateway.store.tables import audit_records, metadata, organisations, projects


def table_names(connection):
    return set(sa.inspect(connection).get_table_names())


async def test_migrations_make_exactly_the_tables(store):
    def differences(connection):
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": metadata})
        return compare_metadata(context, metadata)

    async with store.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrations_go_down_and_up_again(store):
    await store.migrate("base")
    async with store.read() as connection:
        assert await connection.run_sync(table_names) <= {"alembic_version"}
    await store.migrate()
    async with store.read() as connection:
        assert await connection.run_sync(table_names) == {*metadata.tables, "alembic_version"}


async def test_gateways_that_start_together_migrate_once(settings):
    stores = await asyncio.gather(*(Store.open(settings) for _ in range(4)))
    for store in stores:
        assert await store.ping()
        await store.close()


async def test_a_newer_schema_is_refused(settings, store):
    async with store.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="9999"):
        await Store.open(settings)


async def test_a_failed_transaction_leaves_nothing(store):
    async def insert_twice() -> None:
        async with store.write() as connection:
            for _ in range(2):
                await connection.execute(sa.insert(organisations).values(name="one", created_at=1))

    with pytest.raises(IntegrityError):
        await insert_twice()
    async with store.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(organisations))).scalar() == 0


async def test_foreign_keys_hold(store):
    with pytest.raises(IntegrityError):
        async with store.write() as connection:
            await connection.execute(sa.insert(projects).values(name="p", organisation="nobody", created_at=1))


@pytest.mark.parametrize("statement", ["UPDATE audit_records SET actor = 'x'", "DELETE FROM audit_records"])
async def test_the_audit_is_insert_only(store, statement):
    values = {column.name: "" for column in audit_records.c} | {"sequence": 1, "at": 1}
    async with store.write() as connection:
        await connection.execute(sa.insert(audit_records).values(**values))
    with pytest.raises(DBAPIError, match="insert-only"):
        async with store.write() as connection:
            await connection.execute(sa.text(statement))
    async with store.read() as connection:
        assert (await connection.execute(sa.select(audit_records.c.actor))).scalars().all() == [""]


async def test_writers_wait_for_each_other(store):
    async def count() -> None:
        async with store.write() as connection:
            await store.lock(connection, 1)
            query = sa.select(sa.func.count()).select_from(organisations)
            number = (await connection.execute(query)).scalar()
            await asyncio.sleep(0)
            await connection.execute(sa.insert(organisations).values(name=f"n{number}", created_at=1))

    await asyncio.gather(*(count() for _ in range(8)))
    async with store.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(organisations))).scalar() == 8


async def test_files_are_for_their_owner_alone(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    store = await Store.open(settings)
    try:
        assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
        for path in settings.data_dir.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    finally:
        await store.close()


async def test_sqlite_writes_ahead_and_waits_for_locks(tmp_path):
    store = await Store.open(Settings(data_dir=tmp_path))
    try:
        async with store.read() as connection:
            values = [
                (await connection.execute(sa.text(f"PRAGMA {name}"))).scalar()
                for name in ("journal_mode", "foreign_keys", "busy_timeout")
            ]
        assert values == ["wal", 1, 10_000]
    finally:
        await store.close()


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as failure:
        await Store.open(Settings(data_dir=tmp_path / "file" / "data"))
    assert "\n" not in str(failure.value)


async def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "tidegate.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        await Store.open(Settings(data_dir=tmp_path))


async def test_an_unreachable_database_does_not_show_its_password(tmp_path):
    url = f"postgresql+asyncpg://user:hunter2@/db?host={tmp_path}"
    with pytest.raises(StoreError) as failure:
        await Store.open(Settings(data_dir=tmp_path, database_url=url))
    assert "hunter2" not in str(failure.value)


async def test_a_full_disk_refuses_and_recovers(tmp_path):
    settings = Settings(data_dir=tmp_path)
    store = await Store.open(settings)

    async def fill(pages: str) -> None:
        async with store.write() as connection:
            await connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
            for number in range(2000):
                name = f"{number:060}"
                await connection.execute(sa.insert(organisations).values(name=name, created_at=1))

    try:
        with pytest.raises(Unavailable):
            await fill("1")  # SQLite takes the pages it has as the least: not one more
        assert await store.ping()
        async with store.read() as connection:
            assert (await connection.execute(sa.select(organisations))).all() == []
        await fill("1000000")
    finally:
        await store.close()


async def test_a_read_only_database_refuses_and_is_read(tmp_path):
    await (await Store.open(Settings(data_dir=tmp_path))).close()
    store = await Store.open(Settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path}/tidegate.db"))
    try:
        async with store.read() as connection:
            await connection.execute(sa.text("PRAGMA query_only = ON"))  # the pool has one connection for us
        with pytest.raises(Unavailable):
            async with store.write() as connection:
                await connection.execute(sa.insert(organisations).values(name="one", created_at=1))
        assert await store.ping()
    finally:
        await store.close()


@pytest.mark.parametrize("url", ["mysql://h/d", "nonsense"])
def test_other_databases_are_refused(tmp_path, url):
    with pytest.raises(StoreError):
        database_url(Settings(data_dir=tmp_path, database_url=url))


@pytest.mark.parametrize("url", ["postgresql://u@h/d", "postgres://u@h/d", "postgresql+asyncpg://u@h/d"])
def test_postgresql_urls_use_asyncpg(tmp_path, url):
    assert database_url(Settings(data_dir=tmp_path, database_url=url)).drivername == "postgresql+asyncpg"


@pytest.mark.database
async def test_a_database_that_goes_away_is_unavailable_and_comes_back(tmp_path, own_postgresql):
    settings = Settings(data_dir=tmp_path, database_url=own_postgresql.create_database())
    store = await Store.open(settings)
    try:
        assert await store.ping()
        own_postgresql.stop()
        assert not await store.ping()
        with pytest.raises(Unavailable):
            async with store.write() as connection:
                await connection.execute(sa.insert(organisations).values(name="lost", created_at=1))
        own_postgresql.start()
        assert await store.ping()
    finally:
        await store.close()
