"""Usage rows as JSON and CSV, the latter safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_json(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with amounts as numbers."""
    return [
        {name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()} for row in rows
    ]


def to_json_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a JSON array, for people and scripts."""
    return json.dumps(to_json(rows), indent=2, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV (RFC 4180) with a header; no row, no header.

    A text that a spreadsheet would take for a formula gets an apostrophe in front (CWE-1236).
    Amounts are plain decimals, without exponent.
    """
    file = io.StringIO()
    writer = csv.writer(file)
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        writer.writerow(_cell(value) for value in row.values())
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
