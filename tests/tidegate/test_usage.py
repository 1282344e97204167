"""``tidegate usage`` on a store with records."""

import asyncio
import csv
import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.usage import write
from tests.gateway.ledger.support import make_record
from tidegate.commands.usage import app


async def execute(settings, action):
    store = await Store.open(settings)
    try:
        async with store.write() as connection:
            await action(connection)
    finally:
        await store.close()


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_DATA_DIR", str(tmp_path / "data"))
    return Settings()


@pytest.fixture
def used(settings):
    records = [
        make_record(model="sentiment", tokens=1500, cost_pico_usd=570, billed_pico_usd=570, compute_ns=2_000_000),
        make_record(model="sentiment", state="failed"),
        make_record(model="[bold]digits", pixels=784, project="other"),
    ]
    asyncio.run(execute(settings, lambda connection: write(connection, records)))
    return settings


def run(*arguments, code=0):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def test_a_table_for_people(used):
    output = run().output
    assert "Usage by model" in output
    assert "1,500" in output
    assert "…" not in output  # nothing is cut off at 80 columns
    assert "5.7e-10" in output
    assert "[bold]digits" in output


def test_json_for_scripts(used):
    rows = json.loads(run("--by", "model", "--json").output)
    assert [(row["model"], row["requests"], row["failed"]) for row in rows] == [
        ("[bold]digits", 1, 0),
        ("sentiment", 2, 1),
    ]
    assert rows == json.loads(run("--format", "json").output)


def test_days_and_project(used):
    assert [row["project"] for row in json.loads(run("--by", "project", "--project", "other", "--json").output)] == [
        "other"
    ]
    assert json.loads(run("--until", "1d", "--json").output) == []
    assert len(json.loads(run("--by", "day", "--since", "today", "--json").output)) == 1


def test_files(used, tmp_path):
    run("--format", "csv", "--output", str(tmp_path / "usage.csv"))
    with (tmp_path / "usage.csv").open(newline="") as file:
        assert [row["requests"] for row in csv.DictReader(file)] == ["1", "2"]
    run("--format", "parquet", "--output", str(tmp_path / "usage.parquet"))
    assert pq.read_table(tmp_path / "usage.parquet").column("tokens").to_pylist() == [0, 1500]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--since", "soon"), 2, "--since"),
        (("--format", "parquet"), 2, "--output"),
        (("--by", "planet"), 2, "planet"),
        (("--format", "csv", "--output", "/nowhere/usage.csv"), 1, "/nowhere/usage.csv"),
    ],
)
def test_mistakes_are_one_clear_line(used, arguments, code, says):
    assert says in run(*arguments, code=code).output


def test_a_store_that_cannot_be_opened_is_one_line(settings, monkeypatch):
    monkeypatch.setenv("TIDEGATE_DATABASE_URL", "mysql://nowhere/x")
    assert "mysql is not served" in run(code=1).output


def test_nothing_used_yet(settings):
    asyncio.run(execute(settings, lambda _connection: asyncio.sleep(0)))
    assert "Nothing was used" in run().output


def test_rebuild_says_what_it_corrected(used):
    assert "agree with the records" in run("rebuild").output
    statement = "UPDATE usage_daily SET tokens = 9 WHERE model = 'sentiment' AND state = 'completed'"
    asyncio.run(execute(used, lambda connection: connection.exec_driver_sql(statement)))
    (wrong,) = json.loads(run("rebuild", "--json").output)
    assert (wrong["model"], wrong["before"]["tokens"], wrong["after"]["tokens"]) == ("sentiment", 9, 1500)
    assert json.loads(run("rebuild", "--json").output) == []
