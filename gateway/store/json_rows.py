"""Many rows in one statement, as one JSON parameter, for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.types import BigInteger, Boolean, Integer


def quote(name: str) -> str:
    """``name`` as an SQL identifier."""
    return f'"{name}"'


def names(columns: Iterable[str]) -> str:
    """SQL identifiers, separated by commas."""
    return ", ".join(quote(name) for name in columns)


def source(fields: Sequence[str], columns: Any, sqlite: bool) -> str:
    """SELECT that unfolds ``:rows``, a JSON array of arrays in the order of ``fields``."""
    if sqlite:
        cells = (f"json_extract(value, '$[{index}]') AS {quote(name)}" for index, name in enumerate(fields))
        return f"SELECT {', '.join(cells)} FROM json_each(:rows) WHERE true"  # noqa: S608
    types = {BigInteger: "bigint", Integer: "integer", Boolean: "boolean"}
    cells = (
        f"CAST(value ->> {index} AS {types.get(type(columns[name].type), 'text')}) AS {quote(name)}"
        for index, name in enumerate(fields)
    )
    return f"SELECT {', '.join(cells)} FROM jsonb_array_elements(CAST(:rows AS jsonb))"  # noqa: S608
