"""Key checks and bills with many keys: the command at a small size, and the plans that make it hold at any."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from gateway.store.usage_daily import rebuild_daily
from tidegate.commands.bench import app
from tidegate.scale import Database, Size


def test_both_sizes_are_asked_everything(tmp_path: Path) -> None:
    arguments = ["scale", "--keys", "200,2000", "--rows", "2000,20000", "--rounds", "3", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code in {0, 3}, result.output  # three rounds decide nothing
    found = json.loads(result.stdout)
    assert len(found) == 7
    for item in found:
        assert item["small_ms"] > 0 < item["large_ms"]
        assert item["ratio"]["low"] <= item["ratio"]["value"] <= item["ratio"]["high"]
    assert list(tmp_path.iterdir()) == []  # removed


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """SQLite's plan for every statement that each question executes."""

    async def ask() -> dict[str, list[str]]:
        database = Database(tmp_path_factory.mktemp("scale"), Size(1000, 10_000), seed=1)
        await database.build(lambda _text: None)
        try:
            async with database.store.write() as connection:
                assert await rebuild_daily(connection) == []  # what was filled is what the ledger keeps
            return {name: await _plan(database, question) for name, question in database.questions().items()}
        finally:
            await database.close()

    return asyncio.run(ask())


async def _plan(database: Database, question) -> list[str]:  # type: ignore[no-untyped-def]
    seen: set[tuple[str, int]] = set()

    def note(_connection, _cursor, statement, parameters, *_rest):  # type: ignore[no-untyped-def]
        seen.add((statement, len(parameters)))

    engine = database.store.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        await question()
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    lines = []
    async with database.store.read() as connection:
        for statement, parameters in sorted(seen):
            explained = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("x",) * parameters)
            lines += [row[3] for row in explained]
    return lines


@pytest.mark.parametrize(
    "question",
    [
        "check a key", "check a key that does not exist", "summary by model, everybody", "summary by day, everybody",
        "summary by key, one project", "summary by day, one project", "latest 100 records, one project",
    ],
)  # fmt: skip
def test_no_question_reads_a_whole_table_that_grows_with_keys_or_records(
    plans: dict[str, list[str]], question: str
) -> None:
    assert plans[question]
    for line in plans[question]:
        assert not re.match(r"SCAN (usage_records|usage_daily|api_keys|key_secrets|projects)\b", line), line
