import csv
import io
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.ledger.export import to_csv, to_json, to_json_text
from gateway.ledger.parquet import to_parquet

ROWS = [
    {"model": "sentiment", "requests": 3, "compute_ms": 1.5, "cost_usd": Decimal("0.000000000570"), "test": False},
    {"model": None, "requests": -3, "compute_ms": 0.0, "cost_usd": Decimal(7), "test": True},
]


@pytest.mark.parametrize("evil", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", '=HYPERLINK("http://x")'])
def test_no_text_begins_a_formula(evil):
    (row,) = csv.DictReader(io.StringIO(to_csv([{"model": evil, "requests": 1}])))
    assert row["model"] == f"'{evil}"


def test_csv_has_a_header_numbers_stay_numbers_and_amounts_are_exact():
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert rows[0]["cost_usd"] == "0.000000000570"
    assert rows[1]["requests"] == "-3"
    assert rows[1]["model"] == ""
    assert to_csv([]) == ""


def test_json_has_numbers():
    assert json.loads(to_json_text(ROWS)) == to_json(ROWS)
    assert to_json(ROWS)[0]["cost_usd"] == pytest.approx(5.7e-10)


def test_parquet_keeps_types_and_exact_amounts():
    table = pq.read_table(pa.BufferReader(to_parquet(ROWS)))
    assert table.schema.field("cost_usd").type == pa.decimal128(38, 12)
    assert table.schema.field("requests").type == pa.int64()
    assert table.schema.field("test").type == pa.bool_()
    assert table.to_pylist() == ROWS
    assert pq.read_table(pa.BufferReader(to_parquet([]))).num_rows == 0
