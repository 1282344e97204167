"""``tidegate bench scale``: whether a key check and a bill take as long with a thousand times the keys.

Two SQLite databases are filled with generated keys and usage records and asked the same questions in turns, by
the gateway's own code. In each round the fastest of a few answers counts, as whatever else runs on the machine
only adds to them; the ratio is taken round by round.
"""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import uvloop

from benchmarks.bootstrap import Interval, paired_ratio
from benchmarks.recording import as_dict
from gateway.access import keyformat
from gateway.access.audit import Audit
from gateway.access.keyformat import PresentedKey
from gateway.access.keys import Keys
from gateway.access.pepper import load_pepper
from gateway.settings import Settings
from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage import FIELDS
from gateway.store.usage_daily import fill_daily
from gateway.store.usage_reports import latest, summary
from tidegate.console import err, fail, print_json, print_table

LIMIT = 2.0
_KEYS_A_PROJECT, _PROJECTS_AN_ORGANISATION, _MODELS, _DAYS = 10, 100, 10, 30
_ROWS_A_DAY = 5
"""Of one key: what it uses, it uses in sessions."""
_KNOWN = 2_000
"""Keys whose text is known, spread over all."""
LEAST_KEYS = 100
_CHECKS = 20
"""Key checks in one answer."""
_ANSWERS = 5
"""Of each database in one round."""
_NUMBERS = "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {count})"

_ORGANISATIONS = f"INSERT INTO organisations {_NUMBERS} SELECT 'organisation' || n, 1 FROM numbers"  # noqa: S608
_PROJECTS = f"""
INSERT INTO projects
{_NUMBERS} SELECT 'project' || n, 'organisation' || (n / {_PROJECTS_AN_ORGANISATION}), 1 FROM numbers
"""  # noqa: S608
_API_KEYS = f"""
INSERT INTO api_keys (key_id, label, project, scopes, tier, test, created_at)
{_NUMBERS} SELECT printf('k%011d', n), '', 'project' || (n / {_KEYS_A_PROJECT}), 'infer', 'default', 0, 1 FROM numbers
"""  # noqa: S608 - numbers of ours
_SECRETS = f"""
INSERT INTO key_secrets (digest, key_id, pepper_version, last_four, created_at)
{_NUMBERS} SELECT lower(hex(randomblob(32))), printf('k%011d', n), 1, 'xxxx', 1 FROM numbers
"""  # noqa: S608


@dataclass(slots=True, frozen=True)
class Size:
    """How large a database is."""

    keys: int
    rows: int

    def __str__(self) -> str:
        return f"{self.keys:,} keys, {self.rows:,} records"


@dataclass(slots=True)
class Question:
    """What was asked of both, and the time of the fastest answer, a value a round."""

    name: str
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def ratio(self) -> Interval:
        """The large one's time over the small one's."""
        return paired_ratio(self.seconds[1], self.seconds[0])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; times are medians, in milliseconds."""
        small, large = (statistics.median(values) * 1e3 for values in self.seconds)
        return {"question": self.name, "small_ms": small, "large_ms": large, "ratio": self.ratio}


class Database:
    """A filled database with what asks it."""

    def __init__(self, folder: Path, size: Size, seed: int) -> None:
        self.size = size
        self._settings = Settings(data_dir=folder)
        self._random = random.Random(seed)  # noqa: S311 - which keys are asked for
        self._known: list[PresentedKey] = []

    async def build(self, say: Callable[[str], None]) -> None:
        """Make it, and open it."""
        await (await Store.open(self._settings)).close()
        begin = time.monotonic()
        await asyncio.to_thread(self._fill)
        self.store = await Store.open(self._settings)
        async with self.store.write() as connection:
            await fill_daily(connection)
            await usage_totals.rebuild(connection)
        self.keys = await Keys(self.store, Audit(self.store, self._settings), self._settings).open()
        file = self._settings.data_dir / "tidegate.db"
        say(f"{self.size}: {file.stat().st_size / 2**20:,.0f} MiB, filled in {time.monotonic() - begin:.0f} s")

    async def close(self) -> None:
        """Close it."""
        await self.store.close()

    def questions(self) -> dict[str, Callable[[], Awaitable[float]]]:
        """By name: what asks once, and returns the seconds of one answer."""
        return {
            "check a key": lambda: self._check(self._known),
            "check a key that does not exist": lambda: self._check(self._strangers()),
            "summary by model, everybody": lambda: self._summary("model", None),
            "summary by day, everybody": lambda: self._summary("day", None),
            "summary by key, one project": lambda: self._summary("key", self._project()),
            "summary by day, one project": lambda: self._summary("day", self._project()),
            "latest 100 records, one project": self._latest,
        }

    async def _check(self, presented: list[PresentedKey]) -> float:
        chosen = self._random.sample(presented, _CHECKS)
        begin = time.perf_counter()
        for key in chosen:
            await self.keys.verify(key)
        return (time.perf_counter() - begin) / _CHECKS

    def _strangers(self) -> list[PresentedKey]:
        return [keyformat.generate(keyformat.generate_id(), test=False) for _ in range(_CHECKS)]

    async def _summary(self, by: Any, project: str | None) -> float:
        async with self.store.read() as connection:
            begin = time.perf_counter()
            found = await summary(connection, by, project=project)
            seconds = time.perf_counter() - begin
        if not found:
            raise RuntimeError(f"the summary by {by} is empty")
        return seconds

    async def _latest(self) -> float:
        project = self._project()
        async with self.store.read() as connection:
            begin = time.perf_counter()
            await latest(connection, 100, project=project)
            return time.perf_counter() - begin

    def _project(self) -> str:
        return f"project{self._random.randrange(max(1, self.size.keys // _KEYS_A_PROJECT))}"

    def _fill(self) -> None:
        connection = sqlite3.connect(self._settings.data_dir / "tidegate.db", isolation_level=None)
        try:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144", "foreign_keys = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN")
            self._fill_keys(connection)
            indexes = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'usage_records' AND type = 'index' AND sql <> ''"
            ).fetchall()
            for name, _ in indexes:
                connection.execute(f'DROP INDEX "{name}"')
            connection.execute(_records(self.size))
            for _, statement in indexes:
                connection.execute(statement)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()

    def _fill_keys(self, connection: sqlite3.Connection) -> None:
        projects = -(-self.size.keys // _KEYS_A_PROJECT)
        organisations = -(-projects // _PROJECTS_AN_ORGANISATION)
        connection.execute(_ORGANISATIONS.format(count=organisations))
        connection.execute(_PROJECTS.format(count=projects))
        connection.execute(_API_KEYS.format(count=self.size.keys))
        connection.execute(_SECRETS.format(count=self.size.keys))
        pepper = load_pepper(self._settings)
        step = max(1, self.size.keys // _KNOWN)
        self._known = [keyformat.generate(f"k{n:011d}", test=False) for n in range(0, self.size.keys, step)]
        connection.executemany(
            "UPDATE key_secrets SET digest = ? WHERE key_id = ?",
            [(pepper.digest(key.text), key.key_id) for key in self._known],
        )


async def measure(
    folder: Path, small: Size, large: Size, *, rounds: int, seed: int, say: Callable[[str], None]
) -> list[Question]:
    """Fill both databases below ``folder`` and ask them in turns. Needs room for the large one there."""
    databases = (Database(folder / "small", small, seed), Database(folder / "large", large, seed + 1))
    opened: list[Database] = []
    try:
        for database in databases:
            await database.build(say)
            opened.append(database)
        asked = [database.questions() for database in databases]
        found = {name: Question(name) for name in asked[0]}
        for round_ in range(-2, rounds):  # the first two warm the caches
            for name, question in found.items():
                fastest = [math.inf, math.inf]
                for turn in range(2 * _ANSWERS):
                    number = (turn + round_) % 2
                    fastest[number] = min(fastest[number], await asked[number][name]())
                if round_ >= 0:
                    for number in (0, 1):
                        question.seconds[number].append(fastest[number])
    finally:
        for database in opened:
            await database.close()
    return list(found.values())


def _records(size: Size) -> str:
    """INSERT of ``size.rows`` usage records in the order of their ids: every key gets the same share of them."""
    visit = f"(n / {size.keys} / {_ROWS_A_DAY})"
    """Which of its sessions a key's record belongs to."""
    key = f"(n % {size.keys})"
    values = dict.fromkeys(FIELDS, "0") | {
        "usage_id": "printf('%08x-%04x-7000-8000-%012x', n / 65536, n % 65536, n)",
        "state": "CASE n % 20 WHEN 0 THEN 'failed' ELSE 'completed' END",
        "organisation": f"'organisation' || ({key} / {_KEYS_A_PROJECT * _PROJECTS_AN_ORGANISATION})",
        "project": f"'project' || ({key} / {_KEYS_A_PROJECT})",
        "key_id": f"printf('k%011d', {key})",
        "model": f"'model' || (({key} + {visit}) % {_MODELS})",
        "dialect": "'huggingface'", "operation": "'text-classification'", "request_id": "printf('%036d', n)",
        "idempotency_key": "NULL", "error": "NULL", "prices_version": "'v1'", "gateway_id": "'gateway'",
        "received_at": f"1767225600000000 + ({key} + {visit}) % {_DAYS} * 86400000000 + n % 86400000000",
        "tokens": "10", "rows": "1", "compute_ns": "5700", "cost_pico_usd": "570", "billed_pico_usd": "570",
        "basis": "'measured'", "settled": "1",
    }  # fmt: skip
    columns = ", ".join(f'"{name}"' for name in FIELDS)
    selected = ", ".join(values[name] for name in FIELDS)
    numbers = _NUMBERS.format(count=size.rows)
    return f"INSERT INTO usage_records ({columns}) {numbers} SELECT {selected} FROM numbers"  # noqa: S608


def run(keys: str, rows: str, rounds: int, folder: Path | None, seed: int, *, json_: bool) -> None:
    """``tidegate bench scale``. Ends the command with code 3 if an answer takes too long."""
    counts = _numbers(keys), _numbers(rows)
    if [len(count) for count in counts] != [2, 2]:
        fail("two numbers of keys and two of records are expected", code=2)
    sizes = [Size(*pair) for pair in zip(*counts, strict=True)]
    if any(size.keys < LEAST_KEYS or size.rows < size.keys for size in sizes):
        fail(f"two sizes are expected, of {LEAST_KEYS} keys at least, and a record for each", code=2)

    def say(text: str) -> None:
        err.print(text, highlight=False)

    with tempfile.TemporaryDirectory(prefix="tidegate-scale-", dir=folder) as work:
        found = uvloop.run(measure(Path(work), sizes[0], sizes[1], rounds=rounds, seed=seed, say=say))
    if json_:
        print_json(as_dict([question.to_dict() for question in found]))
    else:
        table = [
            [
                item["question"], f"{item['small_ms']:.3f}", f"{item['large_ms']:.3f}", item["ratio"],
                "yes" if item["ratio"].value <= LIMIT else "no",
            ]
            for item in (question.to_dict() for question in found)
        ]  # fmt: skip
        columns = ["question", f"{sizes[0]}, ms", f"{sizes[1]}, ms", "ratio", f"within {LIMIT:g}x"]
        print_table(
            f"SQLite, medians over {rounds} rounds of the fastest of {_ANSWERS}, ratio with its 95 % interval",
            columns,
            table,
        )
    if any(question.ratio.value > LIMIT for question in found):
        raise typer.Exit(3)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"{text}: numbers separated by commas are expected", code=2)
