"""``tidegate usage``: what was used and what it cost, from the store that the settings name."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gateway.ledger.export import to_csv, to_json_text
from gateway.settings import Settings
from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage_daily import rebuild_daily
from gateway.store.usage_reports import GroupBy, parse_day, summary
from tidegate.console import JsonFlag, fail, file_error, out, print_json, print_table
from tidegate.store import with_store

app = typer.Typer(
    help="What was used, and what it cost.\n\n"
    "Example: `tidegate usage --by day --since 7d --format csv --output week.csv`",
    invoke_without_command=True,
)

_TABLE = {
    "requests": "requests",
    "failed": "failed",
    "tokens": "tokens",
    "pixels": "pixels",
    "compute_ms": "compute ms",
    "cost_usd": "cost USD",
    "billed_usd": "billed USD",
}
"""Columns for people, and their headings, which may wrap."""


@app.callback()
def usage(
    context: typer.Context,
    by: Annotated[GroupBy, typer.Option(help="One row for each.")] = "model",
    since: Annotated[str | None, typer.Option(help="First day (UTC): 2026-11-23, today, or 7d.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day (UTC), inclusive.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project only.")] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["table", "json", "csv", "parquet"], typer.Option(help="How to write it.")
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="File to write to; Parquet needs one.", dir_okay=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Sum up usage by key, project, model or day."""
    if context.invoked_subcommand is not None:
        return
    form = "json" if as_json else format
    if form == "parquet" and output is None:
        fail("Parquet goes to a file: add --output FILE", code=2)
    today = dt.datetime.now(dt.timezone.utc).date()
    first, last = _day("--since", since, today), _day("--until", until, today)

    async def read(store: Store, _settings: Settings) -> list[dict[str, Any]]:
        async with store.read() as connection:
            return await summary(connection, by, since=first, until=last, project=project)

    _print(with_store(read), by, form, output)


@app.command()
def rebuild(as_json: JsonFlag = False) -> None:
    """Compute the sums by day and by model anew from the usage records, and say what was wrong.

    Example: tidegate usage rebuild
    """

    async def run(store: Store, _settings: Settings) -> list[dict[str, Any]]:
        async with store.write() as connection:
            return [*await rebuild_daily(connection), *await usage_totals.rebuild(connection)]

    wrong = with_store(run)
    if as_json:
        print_json(wrong)
    elif wrong:
        columns = ("day", "project", "key_id", "model", "state")
        print_table("Corrected", columns, [[row.get(name, "") for name in columns] for row in wrong])
    else:
        out.print("The sums agree with the records.")


def _print(rows: list[dict[str, Any]], by: str, form: str, output: Path | None) -> None:
    if form == "parquet" and output is not None:
        from gateway.ledger.parquet import to_parquet  # noqa: PLC0415 - slow to import, seldom needed

        _save(output, to_parquet(rows))
    elif form == "table" and output is None:
        if not rows:
            out.print("Nothing was used in this period.")
            return
        groups = [name for name in rows[0] if name in {"key", "project", "organisation", "model", "day"}]
        columns = [*groups, *(name for name in _TABLE if _wanted(name, rows))]
        headings = [_TABLE.get(name, name) for name in columns]
        print_table(f"Usage by {by}", headings, [[_cell(row[name]) for name in columns] for row in rows])
    else:
        text = to_csv(rows) if form == "csv" else to_json_text(rows)
        if output is None:
            typer.echo(text, nl=False)
        else:
            _save(output, text.encode())


def _wanted(name: str, rows: list[dict[str, Any]]) -> bool:
    """Whether a column says something: a bill that is the cost, or a count of nothing, does not."""
    if name == "billed_usd":
        return any(row[name] != row["cost_usd"] for row in rows)
    return name in {"requests", "compute_ms", "cost_usd"} or any(row[name] for row in rows)


def _save(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        fail(file_error(error))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Decimal):
        return f"{value:,.4f}" if value >= 1 else f"{float(value):.3g}"
    return str(value)


def _day(option: str, value: str | None, today: dt.date) -> dt.date | None:
    if value is None:
        return None
    try:
        return parse_day(value, today)
    except ValueError as error:
        fail(f"{option}: {error}", code=2)
