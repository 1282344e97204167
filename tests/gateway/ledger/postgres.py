"""A real PostgreSQL for the tests, in a folder of its own, reached over a Unix socket."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil


class PostgreSQL:
    """A server; it refuses to run as root, so root runs it as ``nobody``."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = _own_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        subprocess.run(["cp", "--archive", _pristine(programs), self.folder / "data"], check=True)

    def start(self) -> None:
        data = str(self.folder / "data")
        options = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100")
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", data, "-k", str(self.folder), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_as_user(),
        )
        deadline = time.monotonic() + 30
        while subprocess.run([self._programs / "pg_isready", "-q", "-h", str(self.folder)], check=False).returncode:
            assert self._process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline, "PostgreSQL did not become ready"
            time.sleep(0.02)

    def stop(self) -> None:
        """At once, breaking every connection off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def freeze(self) -> list[psutil.Process]:
        """SIGSTOP for all of its processes: connections stay, and nobody answers. ``resume`` each afterwards."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.suspend()
        return processes

    def rows(self, url: str, query: str) -> list[list[str]]:
        """What a query gives, as text, from outside."""
        name = url.split("@/")[1].partition("?")[0]
        arguments = ("-h", str(self.folder), "-U", "tests", "-d", name, "-X", "-A", "-t", "-F", "\t", "-c", query)
        return [line.split("\t") for line in self._run("psql", *arguments).splitlines()]

    def dump(self, url: str) -> str:
        """Everything in a database, as text."""
        return self._run("pg_dump", "-h", str(self.folder), "-U", "tests", url.split("@/")[1].partition("?")[0])

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        self._run("createdb", "-h", str(self.folder), "-U", "tests", name)
        return f"postgresql+asyncpg://tests@/{name}?host={self.folder}"

    async def execute(self, url: str, query: str) -> None:
        """Run a statement from outside."""
        name = url.split("@/")[1].split("?", maxsplit=1)[0]
        connection = await asyncpg.connect(host=str(self.folder), user="tests", database=name)
        try:
            await connection.execute(query)
        finally:
            await asyncio.shield(connection.close())

    def _run(self, program: str, *arguments: str) -> str:
        return run(self._programs, program, *arguments)


def run(folder: Path, program: str, *arguments: str) -> str:
    """What ``program`` prints; once in thousands of times one of them is ended by a signal, and is run again."""
    for attempt in range(2):
        done = subprocess.run([folder / program, *arguments], capture_output=True, text=True, cwd="/", **_as_user())
        if done.returncode >= 0 or attempt:
            break
    assert done.returncode == 0, f"{program}: {done.returncode}, {done.stderr}"
    return str(done.stdout)


@functools.cache
def _pristine(programs: Path) -> Path:
    """A data folder as ``initdb`` makes it: a server's own is a copy, which takes a tenth of the time."""
    folder = _own_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run(programs, "initdb", "-D", str(folder / "data"), "-U", "tests", "-A", "trust", "--no-sync", "-E", "UTF8")
    return folder / "data"


def _own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if (user := _user()) is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def _user() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _as_user() -> dict[str, object]:
    user = _user()
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def programs(require_program: Callable[[str], str]) -> Path:
    """The folder of PostgreSQL's programs; Debian keeps most of them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else Path(require_program("initdb")).parent
