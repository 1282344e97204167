"""The statements behind budgets: windows, what is spent and leased in them, what the ledger billed."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import budget_windows, usage_records

BudgetKey = tuple[str, str, str]
"""Level, name and period of a budget."""


def matches(table: sa.Table, key: BudgetKey, window: str) -> list[sa.ColumnElement[bool]]:
    """Select the row of one budget and window."""
    level, name, period = key
    return [table.c.level == level, table.c.name == name, table.c.period == period, table.c.window == window]


async def window_row(
    connection: AsyncConnection, key: BudgetKey, window: str, *, lock: bool = False
) -> tuple[int, int] | None:
    """Return what is spent and leased in a window (nano-USD), or None; ``lock`` keeps others off it."""
    query = sa.select(budget_windows.c.spent_nano_usd, budget_windows.c.leased_nano_usd).where(
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
        .values(level=level, name=name, period=period, window=window, spent_nano_usd=0, leased_nano_usd=0)
        .on_conflict_do_nothing()
    )


async def add(connection: AsyncConnection, key: BudgetKey, window: str, *, spent: int = 0, leased: int = 0) -> None:
    """Change what is spent and leased in a window by so many nano-USD."""
    table = budget_windows
    await connection.execute(
        sa.update(table)
        .where(*matches(table, key, window))
        .values(spent_nano_usd=table.c.spent_nano_usd + spent, leased_nano_usd=table.c.leased_nano_usd + leased)
    )


async def billed(connection: AsyncConnection, key: BudgetKey, window: str) -> int:
    """Sum what the ledger has billed in a window."""
    level, name, _period = key
    begin, end = window_bounds(window)
    column = {"key": usage_records.c.key_id, "project": usage_records.c.project}.get(
        level, usage_records.c.organisation
    )
    total = sa.select(sa.func.coalesce(sa.func.sum(usage_records.c.cost_nano_usd), 0)).where(
        column == name,
        usage_records.c.received_at >= begin,
        usage_records.c.received_at < end,
        usage_records.c.test.is_(False),
    )
    return int((await connection.execute(total)).scalar_one())


def window_bounds(window: str) -> tuple[int, int]:
    """Return a window's first instant and the first after it, in microseconds since the epoch."""
    daily = len(window) == len("2026-11-23")
    begin = dt.datetime.strptime(window if daily else f"{window}-01", "%Y-%m-%d").replace(tzinfo=dt.timezone.utc)
    following = begin + dt.timedelta(days=1 if daily else 32)
    end = following if daily else following.replace(day=1)
    return int(begin.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000
