"""What the tests of access share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from gateway.types import Call, Principal, Units


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


def make_call(credential: str | None = None, address: str = "192.0.2.1", **values: Any) -> Call:
    return Call("id", "id", "plain", "infer", credential=credential, client_address=address, **values)


def make_principal(key_id: str = "key", project: str = "web", organisation: str = "acme", **values: Any) -> Principal:
    return Principal(key_id, project, organisation, frozenset({"infer"}), **values)


def admitted_call(principal: Principal, model: str = "m", cost_usd: float = 0.0, **units: int) -> Call:
    call = make_call(principal=principal, model=model, units=Units(**units))
    call.estimated_cost_usd = cost_usd
    return call


@contextmanager
def statements(store):
    """Every statement that reaches the database meanwhile."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_rest):
        seen.append(statement)

    event.listen(store.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(store.engine.sync_engine, "before_cursor_execute", note)


async def dump(store) -> str:
    """Every value of every table, as text."""
    async with store.read() as connection:
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        rows = [str((await connection.execute(sa.text(f'SELECT * FROM "{name}"'))).all()) for name in names]
    return "\n".join(rows)
