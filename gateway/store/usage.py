"""Usage records in the database: written in batches, each exactly once, with their daily sums.

A record moves along ``reserved`` → ``unknown`` → ``completed | failed | client_closed`` and never
back, whatever order or how often its versions arrive; the cost of a completed record is settled once.
``usage_daily`` and ``usage_totals`` are derived in the same transaction from what really changed, so that a
repeated or racing write adds nothing to them.

A batch travels in one statement, not row by row: one round trip, and on SQLite one step, during which
the event loop's thread has the interpreter to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec
from sqlalchemy import CursorResult, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store import usage_totals
from gateway.store.json_rows import names, quote, source
from gateway.store.tables import usage_records
from gateway.store.usage_daily import DailySums

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
    """What the project owes: 0 for test keys, and for calls that neither completed nor delivered a part."""
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

_INSERT_ROWS = 1000
"""In one statement."""
_SQLITE_ROWS = 512
"""The same on SQLite, which takes 32,766 values."""

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
    sums, totals = DailySums(), usage_totals.Changes()
    late: Sequence[UsageRecord] = ()
    if records:
        inserted = await _insert(connection, records, sqlite, fresh)
        result.inserted = len(inserted)
        for record in records:
            if record.usage_id in inserted:
                result.ended += record.state != "reserved"
                sums.add(record)
                totals.add(record.model, record.state, record.rows)
        late = [record for record in records if record.usage_id not in inserted]
    if late or settlements:
        changed = await _merge(connection, late, settlements, sqlite)
        result.updated = len(changed)
        for before, after in changed:
            result.ended += before.state == "reserved" != after.state
            sums.take(before)
            sums.add(after)
            totals.add(before.model, before.state, before.rows, -1)
            totals.add(after.model, after.state, after.rows)
        if changed:
            after_rows = _encode([after for _, after in changed]).decode()
            await connection.execute(_update_statement(sqlite), {"rows": after_rows})
    await sums.write(connection)
    await totals.write(connection)  # last: its few rows are everybody's, and are locked until the commit
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


async def _insert(connection: AsyncConnection, records: Sequence[UsageRecord], sqlite: bool, fresh: bool) -> set[str]:
    """Insert those that are not there; returns their ids."""
    inserted: set[str] = set()
    start = 0
    while start < len(records):
        size = min(_INSERT_ROWS, len(records) - start)
        if sqlite:
            # Powers of two: every number of rows is a statement of its own, which the driver keeps prepared
            # (many of them, on each connection).
            size = min(_SQLITE_ROWS, 1 << (size.bit_length() - 1))
        part = records[start : start + size]
        start += size
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
    target = f"INSERT INTO usage_records ({names(FIELDS)})"
    if sqlite:  # where unfolding JSON would take more than twice as long
        marks = f"({', '.join('?' * len(FIELDS))})"
        values = tuple(chain.from_iterable(map(msgspec.structs.astuple, records)))
        statement = f"{target} VALUES {', '.join([marks] * len(records))} {ending}"
        return await connection.exec_driver_sql(statement, values)
    query = text(f"{target} {source(FIELDS, usage_records.c, sqlite)} {ending}")
    result: Any = await connection.execute(query, {"rows": _encode(records).decode()})
    return result  # type: ignore[no-any-return]  # the statement is one that inserts


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


def _decode(rows: Any) -> list[UsageRecord]:
    return [UsageRecord(*row) for row in rows]


def _select_statement(sqlite: bool) -> TextClause:
    ids = "SELECT value FROM json_each(:ids)" if sqlite else "SELECT jsonb_array_elements_text(CAST(:ids AS jsonb))"
    lock = "" if sqlite else " FOR UPDATE"
    query = f"SELECT {names(FIELDS)} FROM usage_records WHERE usage_id IN ({ids}) ORDER BY usage_id{lock}"  # noqa: S608
    return text(query)


def _update_statement(sqlite: bool) -> TextClause:
    assignments = ", ".join(f"{quote(name)} = new.{quote(name)}" for name in FIELDS[1:])
    return text(
        f"UPDATE usage_records SET {assignments} FROM ({source(FIELDS, usage_records.c, sqlite)}) AS new "  # noqa: S608
        "WHERE usage_records.usage_id = new.usage_id"
    )
