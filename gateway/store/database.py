"""The store: one SQLAlchemy engine on SQLite or PostgreSQL, its schema brought up to date at opening."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.store.files import private_directory, touch_private
from gateway.timeouts import timeout

MIGRATIONS = Path(__file__).parent / "migrations"

log = structlog.get_logger(__name__)

_MIGRATION_LOCK = 0x7469_6465_6761_7465  # "tidegate", PostgreSQL's advisory lock of the schema
_UNREACHABLE = (OperationalError, InterfaceError, PoolTimeout, OSError, asyncio.TimeoutError)
_NEVER = ("28", "3D")
"""SQLSTATE classes that waiting does not mend: no such user, wrong password, no such database."""
_AWAY = ("08", "25006", "40", "53", "55P03", "57", "58")
"""SQLSTATEs of a server that cannot take it now: gone, read-only, deadlocked, full, shutting down, its disk ill."""
_RETRY_S = 1.0
_STATEMENT_S = 15.0
"""What a gateway waits for one answer of PostgreSQL: a network that lost its way back says nothing for many minutes."""
_CONNECT: dict[str, Any] = {"timeout": 5, "server_settings": {"application_name": "tidegate", "jit": "off"}}
_preparing: ContextVar[bool] = ContextVar("_preparing", default=False)
"""Set in the task that opens a store: it alone gets through before the store is open."""


class _SchemaError(Exception):
    """The schema cannot be brought to a revision."""


class StoreError(Exception):
    """The store cannot be opened; the message says why, without the URL's password."""


class Store:
    """Where keys, budgets, audit and usage live. Make one with :meth:`open`."""

    def __init__(self, engine: AsyncEngine, patient: AsyncEngine | None = None) -> None:
        """``patient`` is for what may take its time; None: ``engine`` is."""
        self.engine = engine
        self._patient = patient or engine
        self.kind: Literal["sqlite", "postgresql"] = "sqlite" if engine.dialect.name == "sqlite" else "postgresql"
        self.problem: str | None = None
        """Why the store is not open, for the operator; None: it is."""
        self._waits = False
        self._prepare: list[Callable[[], Awaitable[object]]] = []
        self._opening: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings, *, migrate: bool = True, wait: bool = False) -> Store:
        """Connect and bring the schema up to date; several gateways may do so at once.

        Raises :class:`StoreError` when the database cannot be reached or its schema is newer than
        this program. With ``wait``, as a gateway needs it, a server that does not answer is no error: the
        store opens when it does, and until then everything raises ``Unavailable``, as does a statement that
        is not answered within 15 seconds.
        """
        url = database_url(settings)
        try:
            if url.get_backend_name() == "sqlite":
                _prepare_sqlite_file(url)
                store = cls(_sqlite(url))
            elif wait:
                store = cls(_postgresql(url, command_timeout=_STATEMENT_S), _patient(url))
            else:
                store = cls(_postgresql(url))
        except (OSError, ArgumentError) as error:
            raise StoreError(f"the store at {url.render_as_string(hide_password=True)}: {error}") from error
        try:
            await store._select_one()  # first: unlike a migration it does not wait for long
            if migrate:
                await store.migrate()
        except (_SchemaError, DBAPIError, Unavailable, *_UNREACHABLE) as error:
            cause = error.__cause__ if isinstance(error, Unavailable) else error
            if not (wait and store.kind == "postgresql" and _may_pass(cause)):
                await store.close()
                raise StoreError(f"the store at {url.render_as_string(hide_password=True)}: {_brief(cause)}") from error
            store._open_later()
        store._waits = wait
        return store

    async def close(self) -> None:
        """Close every connection."""
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        await self.engine.dispose()
        await self._patient.dispose()

    async def when_open(self, prepare: Callable[[], Awaitable[object]]) -> None:
        """Run ``prepare`` before anybody else reads or writes: now, or when a store that waits opens.

        Raises what ``prepare`` raises, unless the store waits for a server that does not answer.
        """
        if self._waits:
            self._prepare.append(prepare)
        if self.problem is not None:
            return
        try:
            await prepare()
        except Unavailable:
            if not self._waits:
                raise
            self._open_later()

    def _open_later(self) -> None:
        self.problem = "the database does not answer"
        log.warning("store.waiting", reason=self.problem)
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open_forever(), name="store opens")

    async def _open_forever(self) -> None:
        _preparing.set(True)
        while True:
            await asyncio.sleep(_RETRY_S)
            try:
                await self._select_one()
                await self.migrate()
                for prepare in self._prepare:
                    await prepare()
            except (Unavailable, *_UNREACHABLE):
                continue
            except Exception as error:  # noqa: BLE001 - a newer schema, a foreign pepper: the gateway stays closed
                if self.problem != _brief(error):
                    self.problem = _brief(error)
                    log.error("store.not_opened", reason=self.problem)
                continue
            self.problem = None
            log.info("store.open")
            return

    async def ping(self, timeout_s: float = 2.0) -> bool:
        """Whether the database answers within ``timeout_s`` seconds."""
        try:
            async with timeout(timeout_s):
                await self._select_one()
        except (Unavailable, asyncio.TimeoutError):
            return False
        return True

    async def _select_one(self) -> None:
        async with self.read() as connection:
            await connection.execute(sa.text("SELECT 1"))

    @asynccontextmanager
    async def read(self, *, patient: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection to read from. An unreachable database raises ``Unavailable``.

        ``patient``: for statements that may take minutes.
        """
        self._check_open()
        try:
            async with (self._patient if patient else self.engine).connect() as connection:
                yield connection
        except (DBAPIError, *_UNREACHABLE) as error:
            if not _is_away(error):
                raise
            raise _unavailable() from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back by an exception.

        On SQLite it takes the write lock at once, so that what is read inside it stays true. An
        unreachable, full or read-only database raises ``Unavailable``; constraints raise
        SQLAlchemy's ``IntegrityError``.
        """
        self._check_open()
        try:
            async with self.engine.connect() as connection:
                await connection.execution_options(tidegate_write=True)
                async with connection.begin():
                    yield connection
        except (DBAPIError, *_UNREACHABLE) as error:
            if not _is_away(error):
                raise
            raise _unavailable() from error

    def _check_open(self) -> None:
        if self.problem is not None and not _preparing.get():
            raise _unavailable()

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
        async with self._patient.connect() as connection:
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


def _postgresql(url: URL, **connect: Any) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=8,
        max_overflow=8,
        pool_timeout=5,
        pool_pre_ping=True,  # a restarted server costs no failed request
        hide_parameters=True,  # statements in error texts carry no values
        connect_args=_CONNECT | connect,
    )


def _patient(url: URL) -> AsyncEngine:
    """Connections that wait for answers as long as they take; made when needed."""
    return create_async_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=_CONNECT)


def _sqlite(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": 10, "cached_statements": 32})
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
    if revision == "head" and _current(connection) == _newest():
        return
    # Imported here: memory that a gateway whose schema is current never needs.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util.exc import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        if revision == "head" or not _is_behind(connection, revision):
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)
    except CommandError as error:
        raise _SchemaError(str(error)) from error


def _newest() -> str:
    """The newest revision of this program: files and revisions are numbered 0001, 0002, …"""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def _current(connection: sa.Connection) -> str | None:
    """The database's revision."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _is_behind(connection: sa.Connection, revision: str) -> bool:
    """Whether ``revision`` is older than what the database has."""
    if revision == "base":
        return True
    current = _current(connection)
    return current is not None and revision < current  # revisions are numbered: 0001, 0002, …


def _unavailable() -> Unavailable:
    return Unavailable("The store is not available; nothing was changed.", retry_after_s=2.0)


def _is_away(error: BaseException | None) -> bool:
    """Whether the database cannot be used now, whatever is asked of it.

    asyncpg's errors of the server reach SQLAlchemy as plain ``DBAPIError``: their SQLSTATE tells.
    """
    return isinstance(error, _UNREACHABLE) or _sqlstate(error).startswith(_AWAY)


def _sqlstate(error: BaseException | None) -> str:
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or getattr(error, "sqlstate", None) or "")


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error at the start may be gone in a while: a server that is away, or still starting."""
    return _is_away(error) and not _sqlstate(error).startswith(_NEVER)


def _brief(error: BaseException | None) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
