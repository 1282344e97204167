"""Daily sums of the usage records, kept in the transaction that writes them.

``usage_daily`` has them by key, ``usage_daily_models`` over all keys: the operator's bill of a month is then a
few hundred rows, however many keys there are. Reserved records are in neither. Both can be made anew from the
records, which says whether they were right.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Table, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.json_rows import names, quote, source
from gateway.store.tables import usage_daily, usage_daily_models

if TYPE_CHECKING:
    from gateway.store.usage import UsageRecord

DAILY_SUMS = (
    "tokens", "pixels", "rows", "bytes_in", "bytes_out", "total_ns", "queue_ns", "compute_ns", "cache_hits",
    "cost_pico_usd", "billed_pico_usd",
)  # fmt: skip
_NUMBERS = ("requests", *DAILY_SUMS)
_DAY_S = 86_400
_ID_MARGIN_S = 3600
"""An id is made when its request is received, on the same clock; it may have been stepped in between."""


@dataclass(slots=True, frozen=True)
class Rollup:
    """A table of daily sums: its key, and columns that follow from the key."""

    table: Table
    key: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.key, *self.others, *_NUMBERS)


BY_KEY = Rollup(usage_daily, ("day", "project", "key_id", "model", "state"), ("organisation",))
BY_MODEL = Rollup(usage_daily_models, ("day", "model", "state"))

_values = attrgetter(*DAILY_SUMS)
_encode = msgspec.json.Encoder().encode


class DailySums:
    """What one transaction adds to them."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
        self._taken: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)

    def add(self, record: UsageRecord) -> None:
        """Count a record in."""
        if record.state != "reserved":
            self._added[_key(record)].append(_values(record))

    def take(self, record: UsageRecord) -> None:
        """Count a record out, as it was."""
        if record.state != "reserved":
            self._taken[_key(record)].append(_values(record))

    async def write(self, connection: AsyncConnection) -> None:
        """Add them, in the order of their keys, so that two writers never deadlock."""
        by_key: list[tuple[Any, ...]] = []
        by_model: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
        for key in sorted(self._added.keys() | self._taken.keys()):
            added, taken = self._added.get(key, []), self._taken.get(key, [])
            sums = (len(added) - len(taken), *map(int.__sub__, _columns(added), _columns(taken)))
            if any(sums):
                by_key.append((*key, *sums))
                by_model[key[0], key[3], key[4]].append(sums)
        if by_key:
            await _add(connection, BY_KEY, by_key)
            over_keys = {key: map(sum, zip(*rows, strict=True)) for key, rows in by_model.items()}
            await _add(connection, BY_MODEL, [(*key, *over_keys[key]) for key in sorted(over_keys)])


async def rebuild_daily(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Make the sums anew from the records, inside ``Store.write()``; other writers wait.

    Returns the rows that were wrong: their key, ``before`` and ``after`` (None: no such row).
    """
    wrong = []
    for rollup in (BY_KEY, BY_MODEL):
        if connection.dialect.name == "postgresql":
            await connection.execute(text(f"LOCK TABLE {rollup.table.name} IN EXCLUSIVE MODE"))
        await connection.execute(text(f"CREATE TEMPORARY TABLE daily_anew AS {_anew(connection, rollup)}"))
        before = await _except(connection, rollup, rollup.table.name, "daily_anew")
        after = await _except(connection, rollup, "daily_anew", rollup.table.name)
        if before or after:
            await connection.execute(rollup.table.delete())
            await _fill(connection, rollup, "SELECT * FROM daily_anew")
        await connection.execute(text("DROP TABLE daily_anew"))
        wrong += [
            {**dict(zip(rollup.key, key, strict=True)), "before": before.get(key), "after": after.get(key)}
            for key in sorted(before.keys() | after.keys())
        ]
    return wrong


async def compare_day(connection: AsyncConnection, day: dt.date) -> list[dict[str, Any]]:
    """The sums of one day that differ from its records, as :func:`rebuild_daily` gives them; changes nothing.

    One statement for each table: records and sums of one instant. The records of a day lie together, because
    their ids begin with the time.
    """
    start = int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.timezone.utc).timestamp())
    bounds = {
        "day": day.isoformat(), "begin": start * 1_000_000, "end": (start + _DAY_S) * 1_000_000,
        "first": _id_at(start - _ID_MARGIN_S), "last": _id_at(start + _DAY_S + _ID_MARGIN_S),
    }  # fmt: skip
    of_the_day = "usage_id >= :first AND usage_id < :last AND received_at >= :begin AND received_at < :end AND "
    wrong = []
    for rollup in (BY_KEY, BY_MODEL):
        columns = names((*rollup.key, *_NUMBERS))
        anew = f"SELECT {columns} FROM ({_anew(connection, rollup, of_the_day)}) AS made"  # noqa: S608
        kept = f"SELECT {columns} FROM {rollup.table.name} WHERE day = :day"  # noqa: S608
        query = (
            f"SELECT 1 AS kept, lost.* FROM ({kept} EXCEPT {anew}) AS lost "  # noqa: S608
            f"UNION ALL SELECT 0 AS kept, found.* FROM ({anew} EXCEPT {kept}) AS found"
        )
        sides: tuple[dict[tuple[Any, ...], dict[str, int]], ...] = ({}, {})
        for row in (await connection.execute(text(query), bounds)).mappings():
            sums = _sums(row, _NUMBERS)
            if any(sums.values()):  # a state left behind sums to nothing
                sides[row["kept"]][tuple(row[name] for name in rollup.key)] = sums
        after, before = sides
        wrong += [
            {**dict(zip(rollup.key, key, strict=True)), "before": before.get(key), "after": after.get(key)}
            for key in sorted(before.keys() | after.keys())
        ]
    return wrong


async def fill_daily(connection: AsyncConnection) -> None:
    """Fill both tables, which are empty, from the records."""
    for rollup in (BY_KEY, BY_MODEL):
        await _fill(connection, rollup, _anew(connection, rollup))


def day_of(received_at: int) -> str:
    """The day (UTC, ``2026-11-23``) of an instant in microseconds since the epoch."""
    return _day(received_at // 86_400_000_000)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=number)).isoformat()


def _key(record: UsageRecord) -> tuple[str, ...]:
    day = day_of(record.received_at)
    return (day, record.project, record.key_id, record.model, record.state, record.organisation)


def _columns(rows: list[tuple[int, ...]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)] or [0] * len(DAILY_SUMS)


async def _add(connection: AsyncConnection, rollup: Rollup, rows: Sequence[tuple[Any, ...]]) -> None:
    statement = _add_statement(rollup, connection.dialect.name == "sqlite")
    await connection.execute(statement, {"rows": _encode(rows).decode()})


@lru_cache(maxsize=4)
def _add_statement(rollup: Rollup, sqlite: bool) -> TextClause:
    table = rollup.table.name
    additions = ", ".join(f"{quote(name)} = {table}.{quote(name)} + excluded.{quote(name)}" for name in _NUMBERS)
    return text(
        f"INSERT INTO {table} ({names(rollup.fields)}) {source(rollup.fields, rollup.table.c, sqlite)} "
        f"ON CONFLICT ({names(rollup.key)}) DO UPDATE SET {additions}"
    )


def _id_at(seconds: int) -> str:
    """What the id of a record made at this instant (seconds since the epoch) begins with: UUIDv7."""
    digits = f"{seconds * 1000:012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _anew(connection: AsyncConnection, rollup: Rollup, condition: str = "") -> str:
    """SELECT that makes a rollup from the records; ``condition`` ends with AND."""
    day, number = "strftime('%Y-%m-%d', received_at / 1000000, 'unixepoch')", "sum({0})"
    if connection.dialect.name == "postgresql":
        day = "to_char(to_timestamp(received_at / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        number = "CAST(sum({0}) AS bigint)"
    sums = ", ".join(f"{number.format(quote(name))} AS {quote(name)}" for name in DAILY_SUMS)
    others = "".join(f"min({name}) AS {name}, " for name in rollup.others)
    rest = ", ".join(rollup.key[1:])
    return (
        f"SELECT {day} AS day, {rest}, {others}count(*) AS requests, {sums} "  # noqa: S608
        f"FROM usage_records WHERE {condition}state <> 'reserved' GROUP BY 1, {rest}"
    )


async def _fill(connection: AsyncConnection, rollup: Rollup, query: str) -> None:
    await connection.execute(text(f"INSERT INTO {rollup.table.name} ({names(rollup.fields)}) {query}"))


async def _except(
    connection: AsyncConnection, rollup: Rollup, table: str, other: str
) -> dict[tuple[Any, ...], dict[str, int]]:
    """Rows of ``table`` that ``other`` does not have like this."""
    columns = names((*rollup.key, *_NUMBERS))
    rows = await connection.execute(text(f"SELECT {columns} FROM {table} EXCEPT SELECT {columns} FROM {other}"))  # noqa: S608
    found = {tuple(row[name] for name in rollup.key): _sums(row, _NUMBERS) for row in rows.mappings()}
    return {key: sums for key, sums in found.items() if any(sums.values())}  # a state left behind sums to nothing


def _sums(row: Any, columns: Iterable[str]) -> dict[str, int]:
    return {name: row[name] for name in columns}
