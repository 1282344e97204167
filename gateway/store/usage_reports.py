"""What was used, as people ask for it: sums by key, project, model or day, and the latest records.

Sums come from the daily ones, so their time depends on the rows of the answer and on days, not on requests;
those by model and by day over all projects depend on no number of keys either.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Any, Literal, get_args

from sqlalchemy import Select, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import usage_daily, usage_daily_models, usage_records

GroupBy = Literal["key", "project", "model", "day"]
GROUPS: tuple[GroupBy, ...] = get_args(GroupBy)

_COLUMNS = {"key": ("key_id", "project"), "project": ("project", "organisation"), "model": ("model",), "day": ("day",)}
_STATES = ("completed", "failed", "client_closed", "unknown")
_COUNTS = ("tokens", "pixels", "rows", "bytes_in", "bytes_out", "cache_hits")
_TIMES = ("total_ns", "queue_ns", "compute_ns")
_AMOUNTS = ("cost_pico_usd", "billed_pico_usd")


async def summary(
    connection: AsyncConnection,
    group_by: GroupBy,
    *,
    since: dt.date | None = None,
    until: dt.date | None = None,
    project: str | None = None,
) -> list[dict[str, Any]]:
    """One row a group, ordered by it. Days are UTC's, both inclusive; None of ``project``: all.

    A row holds the group, ``requests`` (by state, too), units, bytes, times in milliseconds,
    ``cost_usd`` (measured compute) and ``billed_usd``, both exact ``Decimal``. Tokens, pixels and
    rows are those of completed requests.
    """
    over_all = project is None and group_by in {"model", "day"}
    table = usage_daily_models if over_all else usage_daily
    columns = [table.c[name] for name in _COLUMNS[group_by]]
    completed = table.c.state == "completed"
    sums = [func.sum(table.c.requests).label("requests")]
    sums += [func.sum(case((table.c.state == state, table.c.requests), else_=0)).label(state) for state in _STATES]
    sums += [
        func.sum(case((completed, table.c[name]), else_=0) if name in {"tokens", "pixels", "rows"} else table.c[name])
        .label(name) for name in (*_COUNTS, *_TIMES, *_AMOUNTS)
    ]  # fmt: skip
    query: Select[Any] = select(*columns, *sums).group_by(*columns).order_by(*columns)
    if since is not None:
        query = query.where(table.c.day >= since.isoformat())
    if until is not None:
        query = query.where(table.c.day <= until.isoformat())
    if project is not None:
        query = query.where(table.c.project == project)
    rows = (await connection.execute(query)).mappings()
    return [_readable({column.name: row[column.name] for column in columns}, row, group_by) for row in rows]


async def latest(
    connection: AsyncConnection, limit: int, *, model: str | None = None, project: str | None = None
) -> list[dict[str, Any]]:
    """The ``limit`` newest records, newest first."""
    table = usage_records
    query: Select[Any] = select(table).order_by(table.c.usage_id.desc()).limit(limit)
    if model is not None:
        query = query.where(table.c.model == model)
    if project is not None:
        query = query.where(table.c.project == project)
    return [_record(dict(row)) for row in (await connection.execute(query)).mappings()]


def parse_day(text: str, today: dt.date) -> dt.date:
    """A day: ``2026-11-23``, ``today``, or so many days before it (``7d``). Raises ``ValueError``."""
    if text == "today":
        return today
    if re.fullmatch(r"\d{1,5}d", text):
        return today - dt.timedelta(days=int(text[:-1]))
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return dt.date.fromisoformat(text)
    raise ValueError("must be a day such as 2026-11-23, today, or 7d (seven days ago)")


def _readable(group: dict[str, Any], row: Any, group_by: GroupBy) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in group.items():
        result["key" if name == "key_id" and group_by == "key" else name] = value
    for name in ("requests", *_STATES, *_COUNTS):
        result[name] = int(row[name])
    return result | _measures({name: int(row[name]) for name in (*_TIMES, *_AMOUNTS)})


def _record(row: dict[str, Any]) -> dict[str, Any]:
    received = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(microseconds=row.pop("received_at"))
    measures = _measures({name: row.pop(name) for name in (*_TIMES, *_AMOUNTS)})
    key = {"key": row.pop("key_id")}
    gateway = {"gateway": row.pop("gateway_id")}
    row.pop("idempotency_key")
    return {"received_at": received.isoformat(timespec="microseconds")} | key | row | measures | gateway


def _measures(values: dict[str, int]) -> dict[str, Any]:
    times: dict[str, Any] = {name.replace("_ns", "_ms"): values[name] / 1e6 for name in _TIMES}
    return times | {name.replace("_pico", ""): Decimal(values[name]).scaleb(-12) for name in _AMOUNTS}
