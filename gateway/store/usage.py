"""Usage records in the database: written in batches, each exactly once, with their daily sums.

A record moves along ``reserved`` → ``unknown`` → ``completed | failed | client_closed`` and never
back, whatever order or how often its versions arrive; the cost of a completed record is settled once.
``usage_daily`` is derived in the same transaction from what really changed, so that a repeated or
racing write adds nothing to it.

A batch travels in one statement, not row by row: one round trip, and on SQLite one step, during which
the event loop's thread has the interpreter to itself.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import CursorResult, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Boolean, Integer

from gateway.store.tables import usage_daily, usage_records

State = Literal["reserved", "unknown", "completed", "failed", "client_closed"]
Basis = Literal["none", "estimate", "measured"]

RANK: dict[State, int] = {"reserved": 0, "unknown": 1, "completed": 2, "failed": 2, "client_closed": 2}
"""A version of a record is replaced by one of higher rank only."""


class UsageRecord(msgspec.Struct, array_like=True):
    """One call and what it used; fields are the columns of ``usage_records``, in their order.

    Instants are microseconds since the epoch (UTC), durations nanoseconds, money 10⁻¹² USD.
    """

    usage_id: str
    state: State
    organisation: str
    project: str
    key_id: str
    test: bool
    dialect: str
    operation: str
    model: str
    request_id: str
    idempotency_key: str | None
    received_at: int
    total_ns: int = 0
    status: int = 0
    error: str | None = None
    tokens: int = 0
    pixels: int = 0
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    cache_hits: int = 0
    cost_pico_usd: int = 0
    """What the compute time cost."""
    billed_pico_usd: int = 0
    """What the project owes: 0 for test keys and for all but completed calls."""
    basis: Basis = "none"
    settled: bool = False
    """Whether the cost is final."""
    prices_version: str = ""
    gateway_id: str = ""


class Settlement(msgspec.Struct, array_like=True):
    """The final cost of a completed record."""

    usage_id: str
    queue_ns: int
    compute_ns: int
    cache_hits: int
    cost_pico_usd: int
    billed_pico_usd: int
    basis: Basis
    prices_version: str

    def apply(self, record: UsageRecord) -> None:
        """Set the cost of ``record``, if it is completed and its cost is still open."""
        if not record.settled and record.state == "completed":
            self.preview(record)
            record.settled = True

    def preview(self, record: UsageRecord) -> None:
        """Set the cost of ``record`` and leave it open."""
        record.queue_ns = self.queue_ns
        record.compute_ns = self.compute_ns
        record.cache_hits = self.cache_hits
        record.cost_pico_usd = self.cost_pico_usd
        record.billed_pico_usd = self.billed_pico_usd
        record.basis = self.basis
        record.prices_version = self.prices_version


class NotFreshError(Exception):
    """Records that were said to be new are there already."""


class Written(msgspec.Struct):
    """What a batch changed."""

    inserted: int = 0
    updated: int = 0
    ended: int = 0
    """Records that had no end in the database before."""


FIELDS = UsageRecord.__struct_fields__
DAILY_KEY = ("day", "project", "key_id", "model", "state")
DAILY_SUMS = (
    "tokens", "pixels", "rows", "bytes_in", "bytes_out", "total_ns", "queue_ns", "compute_ns", "cache_hits",
    "cost_pico_usd", "billed_pico_usd",
)  # fmt: skip
_DAILY_FIELDS = (*DAILY_KEY, "organisation", "requests", *DAILY_SUMS)

_INSERT_ROWS = 1000
"""In one statement: SQLite takes 32,766 values."""

_daily_values = attrgetter(*DAILY_SUMS)
_encode = msgspec.json.Encoder().encode


def newer(existing: UsageRecord, record: UsageRecord) -> bool:
    """Whether ``record`` replaces ``existing``, a version of the same call."""
    before, after = RANK[existing.state], RANK[record.state]
    return after > before or (existing.state == record.state and record.settled and not existing.settled)


async def write(
    connection: AsyncConnection,
    records: Sequence[UsageRecord],
    settlements: Sequence[Settlement] = (),
    *,
    fresh: bool = False,
) -> Written:
    """Write a batch inside the caller's transaction; each usage id at most once in ``records``.

    ``fresh`` says that the caller believes none of them to be there: one statement, and
    :class:`NotFreshError` if it is wrong (roll back, write again without). A settlement of a record
    that is not there is ignored. Raises what SQLAlchemy raises.
    """
    records = sorted(records, key=lambda record: record.usage_id)  # one order: two writers never deadlock
    sqlite = connection.dialect.name == "sqlite"
    result = Written()
    sums = _DailySums()
    late: Sequence[UsageRecord] = ()
    if records:
        inserted = await _insert(connection, records, sqlite, fresh)
        result.inserted = len(inserted)
        for record in records:
            if record.usage_id in inserted:
                result.ended += record.state != "reserved"
                sums.add(record)
        late = [record for record in records if record.usage_id not in inserted]
    if late or settlements:
        changed = await _merge(connection, late, settlements, sqlite)
        result.updated = len(changed)
        for before, after in changed:
            result.ended += before.state == "reserved" != after.state
            sums.take(before)
            sums.add(after)
        if changed:
            after_rows = _encode([after for _, after in changed]).decode()
            await connection.execute(_update_statement(sqlite), {"rows": after_rows})
    if rows := sums.rows():
        await connection.execute(_daily_statement(sqlite), {"rows": _encode(rows).decode()})
    return result


async def open_records(connection: AsyncConnection, gateway_id: str, limit: int) -> list[UsageRecord]:
    """Records of a gateway without an end or without a final cost, oldest first."""
    table = usage_records
    query = (
        table.select()
        .where(table.c.gateway_id == gateway_id, text("NOT settled"))
        .order_by(table.c.usage_id)
        .limit(limit)
    )
    return _decode(await connection.execute(query))


async def abandoned(connection: AsyncConnection, before: int, limit: int) -> list[UsageRecord]:
    """Records still reserved that were received before the instant ``before``, of any gateway."""
    table = usage_records
    query = (
        table.select()
        .where(text("NOT settled"), table.c.state == "reserved", table.c.received_at < before)
        .order_by(table.c.usage_id)
        .limit(limit)
    )
    return _decode(await connection.execute(query))


async def rebuild_daily(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Make ``usage_daily`` anew from the records, inside ``Store.write()``; other writers wait.

    Returns the rows that were wrong: their key, ``before`` and ``after`` (None: no such row).
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text("LOCK TABLE usage_daily IN EXCLUSIVE MODE"))
        day = "to_char(to_timestamp(received_at / 1000000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        number = "CAST(sum({0}) AS bigint)"
    else:
        day = "strftime('%Y-%m-%d', received_at / 1000000, 'unixepoch')"
        number = "sum({0})"
    before = await _daily_rows(connection)
    await connection.execute(text("DELETE FROM usage_daily"))
    sums = ", ".join(number.format(_quote(name)) for name in DAILY_SUMS)
    await connection.execute(
        text(
            f"INSERT INTO usage_daily ({_names(_DAILY_FIELDS)}) "  # noqa: S608
            f"SELECT {day} AS day, project, key_id, model, state, min(organisation), count(*), {sums} "
            "FROM usage_records WHERE state <> 'reserved' GROUP BY 1, project, key_id, model, state"
        )
    )
    after = await _daily_rows(connection)
    return [
        {**dict(zip(DAILY_KEY, key, strict=True)), "before": before.get(key), "after": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def day_of(received_at: int) -> str:
    """The day (UTC, ``2026-11-23``) of an instant in microseconds since the epoch."""
    return _day(received_at // 86_400_000_000)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=number)).isoformat()


async def _insert(connection: AsyncConnection, records: Sequence[UsageRecord], sqlite: bool, fresh: bool) -> set[str]:
    """Insert those that are not there; returns their ids."""
    inserted: set[str] = set()
    for start in range(0, len(records), _INSERT_ROWS):
        part = records[start : start + _INSERT_ROWS]
        outcome = await _insert_part(connection, part, sqlite, returning=not fresh)
        if not fresh:
            inserted.update(outcome.scalars())
        elif outcome.rowcount == len(part):
            inserted.update(record.usage_id for record in part)
        else:
            raise NotFreshError
    return inserted


async def _insert_part(
    connection: AsyncConnection, records: Sequence[UsageRecord], sqlite: bool, *, returning: bool
) -> CursorResult[Any]:
    ending = f"ON CONFLICT (usage_id) DO NOTHING{' RETURNING usage_id' if returning else ''}"
    target = f"INSERT INTO usage_records ({_names(FIELDS)})"
    if sqlite:  # where unfolding JSON would take more than twice as long
        marks = f"({', '.join('?' * len(FIELDS))})"
        values = tuple(chain.from_iterable(map(msgspec.structs.astuple, records)))
        statement = f"{target} VALUES {', '.join([marks] * len(records))} {ending}"
        return await connection.exec_driver_sql(statement, values)
    query = text(f"{target} {_source(FIELDS, usage_records.c, sqlite)} {ending}")
    return cast("CursorResult[Any]", await connection.execute(query, {"rows": _encode(records).decode()}))


async def _merge(
    connection: AsyncConnection,
    records: Iterable[UsageRecord],
    settlements: Sequence[Settlement],
    sqlite: bool,
) -> list[tuple[UsageRecord, UsageRecord]]:
    """The rows that these change, locked, before and after."""
    offered = {record.usage_id: record for record in records}
    costs = {settlement.usage_id: settlement for settlement in settlements}
    ids = sorted(offered.keys() | costs.keys())
    existing = _decode(await connection.execute(_select_statement(sqlite), {"ids": _encode(ids).decode()}))
    changed = []
    for row in existing:
        record = offered.get(row.usage_id, row)
        if not newer(row, record):
            record = row
        new = msgspec.structs.replace(record)
        if cost := costs.get(row.usage_id):
            cost.apply(new)
        if new != row:
            changed.append((row, new))
    return changed


class _DailySums:
    """What a transaction adds to ``usage_daily``; reserved records are not in it."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
        self._taken: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)

    def add(self, record: UsageRecord) -> None:
        """Count a record in."""
        if record.state != "reserved":
            self._added[_daily_key(record)].append(_daily_values(record))

    def take(self, record: UsageRecord) -> None:
        """Count a record out, as it was."""
        if record.state != "reserved":
            self._taken[_daily_key(record)].append(_daily_values(record))

    def rows(self) -> list[tuple[Any, ...]]:
        """What to add, in the order of ``_DAILY_FIELDS``, by key, so that two writers never deadlock."""
        rows = []
        for key in sorted(self._added.keys() | self._taken.keys()):
            added, taken = self._added.get(key, []), self._taken.get(key, [])
            plus, minus = _columns(added), _columns(taken)
            sums = (len(added) - len(taken), *map(int.__sub__, plus, minus))
            if any(sums):
                rows.append((*key, *sums))
        return rows


def _daily_key(record: UsageRecord) -> tuple[str, ...]:
    day = day_of(record.received_at)
    return (day, record.project, record.key_id, record.model, record.state, record.organisation)


def _columns(rows: list[tuple[int, ...]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)] or [0] * len(DAILY_SUMS)


def _decode(rows: Any) -> list[UsageRecord]:
    return [UsageRecord(*row) for row in rows]


async def _daily_rows(connection: AsyncConnection) -> dict[tuple[Any, ...], dict[str, int]]:
    rows = (await connection.execute(usage_daily.select())).mappings()
    names = ("requests", *DAILY_SUMS)
    found = {tuple(row[name] for name in DAILY_KEY): {name: row[name] for name in names} for row in rows}
    return {key: sums for key, sums in found.items() if any(sums.values())}  # a state left behind sums to nothing


def _quote(name: str) -> str:
    return f'"{name}"'


def _names(names: Iterable[str]) -> str:
    return ", ".join(_quote(name) for name in names)


def _source(names: Sequence[str], columns: Any, sqlite: bool) -> str:
    """SELECT that unfolds ``:rows``, a JSON array of arrays in the order of ``names``."""
    if sqlite:
        cells = (f"json_extract(value, '$[{index}]') AS {_quote(name)}" for index, name in enumerate(names))
        return f"SELECT {', '.join(cells)} FROM json_each(:rows) WHERE true"  # noqa: S608
    types = {BigInteger: "bigint", Integer: "integer", Boolean: "boolean"}
    cells = (
        f"CAST(value ->> {index} AS {types.get(type(columns[name].type), 'text')}) AS {_quote(name)}"
        for index, name in enumerate(names)
    )
    return f"SELECT {', '.join(cells)} FROM jsonb_array_elements(CAST(:rows AS jsonb))"  # noqa: S608


def _select_statement(sqlite: bool) -> TextClause:
    ids = "SELECT value FROM json_each(:ids)" if sqlite else "SELECT jsonb_array_elements_text(CAST(:ids AS jsonb))"
    lock = "" if sqlite else " FOR UPDATE"
    query = f"SELECT {_names(FIELDS)} FROM usage_records WHERE usage_id IN ({ids}) ORDER BY usage_id{lock}"  # noqa: S608
    return text(query)


def _update_statement(sqlite: bool) -> TextClause:
    assignments = ", ".join(f"{_quote(name)} = new.{_quote(name)}" for name in FIELDS[1:])
    return text(
        f"UPDATE usage_records SET {assignments} FROM ({_source(FIELDS, usage_records.c, sqlite)}) AS new "  # noqa: S608
        "WHERE usage_records.usage_id = new.usage_id"
    )


def _daily_statement(sqlite: bool) -> TextClause:
    sums = ("requests", *DAILY_SUMS)
    additions = ", ".join(f"{_quote(name)} = usage_daily.{_quote(name)} + excluded.{_quote(name)}" for name in sums)
    return text(
        f"INSERT INTO usage_daily ({_names(_DAILY_FIELDS)}) {_source(_DAILY_FIELDS, usage_daily.c, sqlite)} "
        f"ON CONFLICT ({_names(DAILY_KEY)}) DO UPDATE SET {additions}"
    )
