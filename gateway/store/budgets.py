"""The statements behind budgets: windows, what is spent and leased in them, leases, what the ledger billed."""

from __future__ import annotations

import sqlalchemy as sa
import uuid_utils
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import budget_leases, budget_recounts, budget_windows, usage_daily

BudgetKey = tuple[str, str, str]
"""Level, name and period of a budget."""


def matches(table: sa.Table, key: BudgetKey, window: str) -> list[sa.ColumnElement[bool]]:
    """Select the row of one budget and window."""
    level, name, period = key
    return [table.c.level == level, table.c.name == name, table.c.period == period, table.c.window == window]


async def window_row(
    connection: AsyncConnection, key: BudgetKey, window: str, *, lock: bool = False
) -> tuple[int, int] | None:
    """Return what is spent and leased in a window (pico-USD), or None; ``lock`` keeps others off it."""
    query = sa.select(budget_windows.c.spent_pico_usd, budget_windows.c.leased_pico_usd).where(
        *matches(budget_windows, key, window)
    )
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    return None if row is None else (row[0], row[1])


async def ensure_window(connection: AsyncConnection, kind: str, key: BudgetKey, window: str) -> None:
    """Make the row of a window if it is missing."""
    insert = postgresql.insert if kind == "postgresql" else sqlite.insert
    level, name, period = key
    await connection.execute(
        insert(budget_windows)
        .values(level=level, name=name, period=period, window=window, spent_pico_usd=0, leased_pico_usd=0)
        .on_conflict_do_nothing()
    )


async def add(connection: AsyncConnection, key: BudgetKey, window: str, *, spent: int = 0, leased: int = 0) -> None:
    """Change what is spent and leased in a window by so many pico-USD."""
    table = budget_windows
    await connection.execute(
        sa.update(table)
        .where(*matches(table, key, window))
        .values(spent_pico_usd=table.c.spent_pico_usd + spent, leased_pico_usd=table.c.leased_pico_usd + leased)
    )


async def billed(connection: AsyncConnection, key: BudgetKey, window: str) -> int:
    """Sum what the ledger has billed in a window, in pico-USD."""
    level, name, _period = key
    table = usage_daily
    column = {"key": table.c.key_id, "project": table.c.project}.get(level, table.c.organisation)
    total = sa.select(sa.func.coalesce(sa.func.sum(table.c.billed_pico_usd), 0)).where(
        column == name,
        table.c.day >= window,  # a month's name sorts before its days
        table.c.day <= f"{window}-99",
    )
    return int((await connection.execute(total)).scalar_one())


async def lease_writes(connection: AsyncConnection, gateway_id: str, key: BudgetKey, window: str) -> int:
    """Return how often a gateway's lease has been written, 0 if there is none, and keep others off it."""
    query = sa.select(budget_leases.c.writes).where(*_lease(gateway_id, key, window)).with_for_update()
    return int((await connection.execute(query)).scalar() or 0)


async def write_lease(
    connection: AsyncConnection, gateway_id: str, key: BudgetKey, window: str, *, writes: int, leased: int, until: int
) -> None:
    """Change a lease by ``leased`` pico-USD and extend it to ``until`` (µs since the epoch).

    ``writes`` counts its writes, with this one; the first makes it.
    """
    table = budget_leases
    if writes > 1:
        await connection.execute(
            sa.update(table)
            .where(*_lease(gateway_id, key, window))
            .values(leased_pico_usd=table.c.leased_pico_usd + leased, expires_at=until, writes=writes)
        )
        return
    level, name, period = key
    await connection.execute(
        sa.insert(table).values(
            gateway_id=gateway_id, level=level, name=name, period=period, window=window,
            leased_pico_usd=leased, expires_at=until, writes=writes,
        )
    )  # fmt: skip


async def end_lease(connection: AsyncConnection, gateway_id: str, key: BudgetKey, window: str) -> None:
    """Delete a lease of which nothing is left."""
    await connection.execute(sa.delete(budget_leases).where(*_lease(gateway_id, key, window)))


async def expired(connection: AsyncConnection, now: int) -> bool:
    """Whether at ``now`` (µs since the epoch) there is a lease to reap or a recount to do."""
    leases = sa.select(sa.literal(1)).where(budget_leases.c.expires_at < now)
    recounts = sa.select(sa.literal(1)).where(budget_recounts.c.due_at <= now)
    return (await connection.execute(sa.union_all(leases, recounts).limit(1))).first() is not None


async def reap(connection: AsyncConnection, now: int, recount_at: int) -> None:
    """Count leases that have expired as spent, to be compared with the ledger at ``recount_at``."""
    table = budget_leases
    query = sa.select(table).where(table.c.expires_at < now).with_for_update()
    for row in (await connection.execute(query)).all():
        key, amount = (row.level, row.name, row.period), row.leased_pico_usd
        await add(connection, key, row.window, spent=amount, leased=-amount)
        await end_lease(connection, row.gateway_id, key, row.window)
        await connection.execute(
            sa.insert(budget_recounts).values(
                recount_id=str(uuid_utils.uuid7()), level=row.level, name=row.name, period=row.period,
                window=row.window, amount_pico_usd=amount, due_at=recount_at,
            )
        )  # fmt: skip


async def recount(connection: AsyncConnection, now: int) -> None:
    """Give back what the ledger shows was not spent of lost leases, where that is due."""
    table = budget_recounts
    query = sa.select(table).where(table.c.due_at <= now).with_for_update()
    for row in (await connection.execute(query)).all():
        key = (row.level, row.name, row.period)
        standing = await window_row(connection, key, row.window, lock=True)
        if standing is not None:
            paid = await billed(connection, key, row.window)
            back = min(row.amount_pico_usd, max(0, standing[0] - paid))
            await add(connection, key, row.window, spent=-back)
        await connection.execute(sa.delete(table).where(table.c.recount_id == row.recount_id))


def _lease(gateway_id: str, key: BudgetKey, window: str) -> list[sa.ColumnElement[bool]]:
    return [budget_leases.c.gateway_id == gateway_id, *matches(budget_leases, key, window)]
