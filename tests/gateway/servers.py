"""Fixtures of real servers and of the store on both databases; conftests import what they need."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.files import private_directory
from tests.gateway.ledger.postgres import PostgreSQL, programs


@pytest.fixture(scope="session")
def postgresql(require_program):
    """A running PostgreSQL, shared by the tests of this process."""
    server = PostgreSQL(programs(require_program))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_postgresql(require_program):
    """A running PostgreSQL that the test may stop and start."""
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
    return Settings(data_dir=tmp_path / "data", **values)


@pytest.fixture
async def store(settings):
    store = await Store.open(settings)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory):
    """A database file with every table and no row."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("migrated"))
    _migrate(settings)
    return settings.data_dir / "tidegate.db"


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql):
    """The same on the shared server: the URL of a database to copy."""
    url = postgresql.create_database()
    _migrate(Settings(database_url=url))
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.database)])
def migrated_settings(request, tmp_path):
    """Settings with a database of its own that need not be migrated any more."""
    data_dir = private_directory(tmp_path / "data")
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), data_dir / "tidegate.db")
        (data_dir / "tidegate.db").chmod(0o600)
        yield Settings(data_dir=data_dir)
        return
    template = request.getfixturevalue("migrated_postgresql")
    server = request.getfixturevalue("postgresql")
    url = copy_database(server, template)
    yield Settings(data_dir=data_dir, database_url=url)
    drop_database(server, url)


def copy_database(server: PostgreSQL, template: str) -> str:
    """The URL of a copy of the database at ``template``."""
    source = template.split("@/")[1].partition("?")[0]
    name = f"copy{os.urandom(6).hex()}"
    server._run("createdb", "-h", str(server.folder), "-U", "tests", "-T", source, name)
    return template.replace(f"@/{source}?", f"@/{name}?")


def drop_database(server: PostgreSQL, url: str) -> None:
    """Remove it: hundreds of copies would fill a disk."""
    name = url.split("@/")[1].partition("?")[0]
    server._run("dropdb", "--force", "--if-exists", "-h", str(server.folder), "-U", "tests", name)


def _migrate(settings: Settings) -> None:
    async def migrate() -> None:
        await (await Store.open(settings)).close()

    # In a thread of its own: the tests' event loop stays untouched.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, migrate()).result()


class RedisServer:
    """A redis-server on a Unix socket in a folder of its own."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.folder))
        self._process = subprocess.Popen([self._program, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server did not become ready"
                time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@pytest.fixture
def redis_server(require_program):
    server = RedisServer(require_program("redis-server"))
    try:
        server.start()
        yield server
    finally:
        server.remove()
