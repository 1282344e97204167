"""Usage rows as Parquet; apart from the other formats because PyArrow is slow to import."""

from __future__ import annotations

import io
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_AMOUNT = pa.decimal128(38, 12)
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), Decimal: _AMOUNT}


def to_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """A Parquet file: counts int64, times float64, amounts decimal(38, 12), all else strings."""
    names = list(rows[0]) if rows else []
    fields = [(name, _type([row[name] for row in rows])) for name in names]
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(fields))
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _type(values: Sequence[Any]) -> Any:
    first = next((value for value in values if value is not None), "")
    return _TYPES.get(type(first), pa.string())
