"""The statements behind budgets: windows, what is spent and leased in them, what the ledger billed."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import budget_windows, usage_daily

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
