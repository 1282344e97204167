"""The statements behind idempotency keys: one row a key, taken before the work and filled after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import idempotency_keys as table
from gateway.store.tables import usage_records


class Slot(NamedTuple):
    """What a key is unique in: test calls and billed calls of a project do not meet."""

    project: str
    test: bool
    name: str


@dataclass(slots=True, frozen=True)
class Reserved:
    """A key that is taken, its work not begun. Instants are microseconds since the epoch."""

    slot: Slot
    usage_id: str
    digest: str
    created_at: int
    lease_until: int
    expires_at: int


def _is(slot: Slot) -> list[sa.ColumnElement[bool]]:
    return [table.c.project == slot.project, table.c.test == slot.test, table.c.name == slot.name]


async def find(connection: AsyncConnection, slot: Slot) -> sa.Row[Any] | None:
    """The row of a key."""
    return (await connection.execute(sa.select(table).where(*_is(slot)))).first()


async def usage_state(connection: AsyncConnection, usage_id: str) -> str | None:
    """How far the usage record of a call is; None if it is not in the database."""
    query = sa.select(usage_records.c.state).where(usage_records.c.usage_id == usage_id)
    state: str | None = (await connection.execute(query)).scalar()
    return state


async def take(
    connection: AsyncConnection, kind: str, wanted: Reserved, now: int, *, instead_of: str | None = None
) -> bool:
    """Write a reservation, unless somebody else's stands there; expired ones and ``instead_of`` do not count."""
    insert = postgresql.insert if kind == "postgresql" else sqlite.insert
    fresh: dict[str, Any] = {
        "usage_id": wanted.usage_id,
        "digest": wanted.digest,
        "created_at": wanted.created_at,
        "lease_until": wanted.lease_until,
        "expires_at": wanted.expires_at,
        "model": "",
        "status": 0,
        "media_type": None,
        "headers": None,
        "body": None,
        "body_bytes": 0,
    }
    free = table.c.expires_at <= now
    if instead_of is not None:
        free = free | (table.c.usage_id == instead_of)
    statement = (
        insert(table)
        .values(project=wanted.slot.project, test=wanted.slot.test, name=wanted.slot.name, **fresh)
        .on_conflict_do_update(index_elements=[table.c.project, table.c.test, table.c.name], set_=fresh, where=free)
        .returning(table.c.usage_id)
    )
    return (await connection.execute(statement)).first() is not None


async def fill(
    connection: AsyncConnection,
    slot: Slot,
    usage_id: str,
    *,
    model: str,
    status: int,
    media_type: str | None,
    headers: str,
    body: bytes | None,
) -> bool:
    """Write the answer into the reservation of ``usage_id``; False if it is not there any more."""
    changed = await connection.execute(
        sa.update(table)
        .where(*_is(slot), table.c.usage_id == usage_id)
        .values(
            model=model, status=status, media_type=media_type, headers=headers, body=body, body_bytes=len(body or b"")
        )
    )
    return bool(changed.rowcount)


async def drop(connection: AsyncConnection, slot: Slot, usage_id: str) -> None:
    """Give the key back, if ``usage_id`` still has it."""
    await connection.execute(sa.delete(table).where(*_is(slot), table.c.usage_id == usage_id))


async def purge(connection: AsyncConnection, now: int, limit: int) -> int:
    """Delete about ``limit`` of the keys that have expired; how many they were."""
    nth = sa.select(table.c.expires_at).where(table.c.expires_at <= now).order_by(table.c.expires_at)
    last = (await connection.execute(nth.limit(1).offset(limit - 1))).scalar()
    gone = await connection.execute(sa.delete(table).where(table.c.expires_at <= (now if last is None else last)))
    return gone.rowcount


async def stored_bytes(connection: AsyncConnection) -> int:
    """Size of all answers kept."""
    return int((await connection.execute(sa.select(sa.func.coalesce(sa.func.sum(table.c.body_bytes), 0)))).scalar_one())
