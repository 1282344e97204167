"""Rows by model and state over all usage records: what the books compare with Triton's own counts.

Kept in the transaction that writes the records, so that reading them costs a few rows whatever the number
of records, keys and gateways; reserved records are in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.store.tables import usage_totals

Totals = dict[tuple[str, str], tuple[int, int]]
"""Model and state → requests and rows."""


@dataclass(slots=True, frozen=True)
class RecordedRows:
    """Rows of one model in the records of all gateways."""

    completed: int = 0
    other: int = 0
    """Of calls that failed or whose client went away: executed or not."""
    unknown: int = 0
    """Of calls whose gateway was lost: executed or not."""
    reserved: int = 0
    """Of calls in flight."""

    @property
    def ended(self) -> int:
        """Of calls that are over."""
        return self.completed + self.other + self.unknown

    @property
    def accepted(self) -> int:
        """All of them."""
        return self.ended + self.reserved


class Changes:
    """What one transaction adds to ``usage_totals``."""

    def __init__(self) -> None:
        self._sums: Totals = {}

    def add(self, model: str, state: str, rows: int, requests: int = 1) -> None:
        """Count a record in, or out with ``requests`` -1."""
        count, total = self._sums.get((model, state), (0, 0))
        self._sums[model, state] = (count + requests, total + requests * rows)

    async def write(self, connection: AsyncConnection) -> None:
        """Add them, in one order, so that two writers never deadlock."""
        rows = [
            {"model": model, "state": state, "requests": requests, "rows": total}
            for (model, state), (requests, total) in sorted(self._sums.items())
            if requests or total
        ]
        if not rows:
            return
        insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(usage_totals).values(rows)
        table, new = usage_totals.c, insert.excluded
        await connection.execute(
            insert.on_conflict_do_update(
                index_elements=["model", "state"],
                set_={"requests": table.requests + new["requests"], "rows": table["rows"] + new["rows"]},
            )
        )


async def recorded(connection: AsyncConnection) -> dict[str, RecordedRows]:
    """Rows by model that the records of all gateways show now."""
    found: dict[str, dict[str, int]] = {}
    for (model, state), (_, rows) in (await read(connection)).items():
        name = state if state in {"completed", "unknown", "reserved"} else "other"
        sums = found.setdefault(model, {})
        sums[name] = sums.get(name, 0) + rows
    return {model: RecordedRows(**sums) for model, sums in found.items()}


async def read(connection: AsyncConnection) -> Totals:
    """The table."""
    rows = (await connection.execute(usage_totals.select())).mappings()
    return {(row["model"], row["state"]): (row["requests"], row["rows"]) for row in rows}


async def rebuild(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Make ``usage_totals`` anew from the records, inside ``Store.write()``; other writers wait.

    Returns the rows that were wrong: ``model``, ``state``, ``before`` and ``after`` (None: no such row).
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text("LOCK TABLE usage_totals IN EXCLUSIVE MODE"))
    before = _present(await read(connection))
    await connection.execute(usage_totals.delete())
    await connection.execute(
        text(
            "INSERT INTO usage_totals (model, state, requests, rows) "
            'SELECT model, state, count(*), CAST(sum("rows") AS bigint) FROM usage_records GROUP BY model, state'
        )
    )
    after = _present(await read(connection))
    return [
        {"model": key[0], "state": key[1], "before": before.get(key), "after": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _present(totals: Mapping[tuple[str, str], tuple[int, int]]) -> Totals:
    """Without the states that nothing is in any more."""
    return {key: sums for key, sums in totals.items() if any(sums)}
