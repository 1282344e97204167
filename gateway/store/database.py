"""The store: one SQLAlchemy engine on SQLite or PostgreSQL, its schema brought up to date at opening."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.store.files import private_directory, touch_private

MIGRATIONS = Path(__file__).parent / "migrations"

_MIGRATION_LOCK = 0x7469_6465_6761_7465  # "tidegate", PostgreSQL's advisory lock of the schema
_UNREACHABLE = (OperationalError, InterfaceError, PoolTimeout, OSError, asyncio.TimeoutError)


class StoreError(Exception):
    """The store cannot be opened; the message says why, without the URL's password."""


class Store:
    """Where keys, budgets, audit and usage live. Make one with :meth:`open`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.kind: Literal["sqlite", "postgresql"] = "sqlite" if engine.dialect.name == "sqlite" else "postgresql"

    @classmethod
    async def open(cls, settings: Settings, *, migrate: bool = True) -> Store:
        """Connect and bring the schema up to date; several gateways may do so at once.

        Raises :class:`StoreError` when the database cannot be reached or its schema is newer than
        this program.
        """
        url = database_url(settings)
        try:
            if url.get_backend_name() == "sqlite":
                _prepare_sqlite_file(url)
            store = cls(_engine(url))
        except (OSError, ArgumentError) as error:
            raise StoreError(f"the store at {url.render_as_string(hide_password=True)}: {error}") from error
        try:
            if migrate:
                await store.migrate()
            await store._select_one()
        except (CommandError, DBAPIError, Unavailable, *_UNREACHABLE) as error:
            await store.close()
            cause = error.__cause__ if isinstance(error, Unavailable) else error
            raise StoreError(f"the store at {url.render_as_string(hide_password=True)}: {_brief(cause)}") from error
        return store

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    async def ping(self, timeout_s: float = 2.0) -> bool:
        """Whether the database answers within ``timeout_s`` seconds."""
        try:
            await asyncio.wait_for(self._select_one(), timeout_s)
        except (Unavailable, asyncio.TimeoutError):
            return False
        return True

    async def _select_one(self) -> None:
        async with self.read() as connection:
            await connection.execute(sa.text("SELECT 1"))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from. An unreachable database raises ``Unavailable``."""
        try:
            async with self.engine.connect() as connection:
                yield connection
        except _UNREACHABLE as error:
            raise _unavailable() from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back by an exception.

        On SQLite it takes the write lock at once, so that what is read inside it stays true. An
        unreachable, full or read-only database raises ``Unavailable``; constraints raise
        SQLAlchemy's ``IntegrityError``.
        """
        try:
            async with self.engine.connect() as connection:
                await connection.execution_options(tidegate_write=True)
                async with connection.begin():
                    yield connection
        except _UNREACHABLE as error:
            raise _unavailable() from error

    async def lock(self, connection: AsyncConnection, number: int) -> None:
        """Let one transaction at a time, over all gateways, past this line until it ends.

        SQLite's write transactions exclude each other already.
        """
        if self.kind == "postgresql":
            await connection.execute(sa.text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})

    async def migrate(self, revision: str = "head") -> None:
        """Bring the schema to ``revision`` (up or down), one gateway at a time."""
        if self.kind == "sqlite":
            path = self.engine.url.database or ""
            descriptor = await asyncio.to_thread(_lock_file, f"{path}.lock")
            try:
                await self._run_migrations(revision)
            finally:
                os.close(descriptor)
        else:
            await self._run_migrations(revision)

    async def _run_migrations(self, revision: str) -> None:
        async with self.engine.connect() as connection:
            await connection.execution_options(tidegate_write=True)
            async with connection.begin():
                await self.lock(connection, _MIGRATION_LOCK)
                await connection.run_sync(_migrate, revision)


def database_url(settings: Settings) -> URL:
    """The SQLAlchemy URL that ``settings`` name. Raises :class:`StoreError`."""
    if settings.database_url is None:
        return URL.create("sqlite+aiosqlite", database=str(settings.data_dir / "tidegate.db"))
    try:
        url = make_url(settings.database_url.get_secret_value())
    except ArgumentError as error:
        raise StoreError("TIDEGATE_DATABASE_URL is not a database URL") from error
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
    backend = url.drivername.partition("+")[0]
    if backend not in drivers:
        raise StoreError(f"TIDEGATE_DATABASE_URL: {backend} is not served; sqlite and postgresql are")
    return url.set(drivername=drivers[backend])


def alembic_config() -> Config:
    """Alembic's configuration for the migrations inside this package."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def _engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() == "postgresql":
        return create_async_engine(
            url,
            pool_size=8,
            max_overflow=8,
            pool_timeout=5,
            pool_pre_ping=True,  # a restarted server costs no failed request
            hide_parameters=True,  # statements in error texts carry no values
            connect_args={"timeout": 5, "server_settings": {"application_name": "tidegate", "jit": "off"}},
        )
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": 10})
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)  # at DEBUG it writes the values of statements
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite_file(url: URL) -> None:
    if not url.database or url.database == ":memory:":
        raise ArgumentError("SQLite needs a file")
    path = Path(url.database)
    private_directory(path.parent)
    touch_private(path)  # SQLite gives its -wal and -shm files the mode of this one


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("tidegate_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _lock_file(path: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _migrate(connection: sa.Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    if revision == "head" or not _is_behind(connection, revision):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


def _is_behind(connection: sa.Connection, revision: str) -> bool:
    """Whether ``revision`` is older than what the database has."""
    if revision == "base":
        return True
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    current = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return current is not None and revision < current  # revisions are numbered: 0001, 0002, …


def _unavailable() -> Unavailable:
    return Unavailable("The store is not available; nothing was changed.", retry_after_s=2.0)


def _brief(error: BaseException | None) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
