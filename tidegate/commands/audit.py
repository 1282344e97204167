"""``tidegate audit``: read the audit, and prove that nobody changed it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.access.audit import Audit, Verification
from gateway.access.chain import AuditRecord
from tidegate.console import JsonFlag, err, fail, file_error, print_json, print_table
from tidegate.store import with_store

app = typer.Typer(help="The audit: verify, list, export.\n\nExample: `tidegate audit verify`", no_args_is_help=True)

_PAGE = 1000


@app.command()
def verify(as_json: JsonFlag = False) -> None:
    """Walk the whole chain; exit code 3 and the first bad record if it was tampered with.

    Example: `tidegate audit verify`
    """
    found: Verification = with_store(lambda store, settings: Audit(store, settings).verify())
    if as_json:
        print_json({**dataclasses.asdict(found), "whole": found.whole})
    elif found.finding is None:
        typer.echo(
            f"whole: {found.records} records, {found.checkpoints} signed checkpoints, {found.anchored} of them anchored"
        )
    if not as_json:
        for silence in found.silences:
            said = (
                f"gateway {silence.gateway} has written nothing since record {silence.sequence}, {_when(silence.since)}"
            )
            err.print(f"{said}: it was killed, or its audit was stopped", highlight=False, markup=False)
    if not as_json and found.whole and found.checkpoints and not found.anchored:
        err.print("There is no anchor file here: a restored or cut database would not show.", highlight=False)
    if found.finding is not None:
        if as_json:
            raise typer.Exit(3)
        fail(f"record {found.finding.sequence}: {found.finding.reason}", code=3)


@app.command("list")
def list_records(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the newest records.

    Example: `tidegate audit list --limit 20`
    """
    found = with_store(lambda store, settings: Audit(store, settings).records(limit=limit, newest_first=True))
    records = list(reversed(found))
    if as_json:
        print_json([describe(record) for record in records])
        return
    print_table(
        "Audit",
        ("#", "at", "actor", "action", "object", "result"),
        (
            (
                record.sequence,
                _when(record.at),
                record.actor,
                record.action,
                record.object,
                record.result,
            )
            for record in records
        ),
    )


@app.command()
def export(
    output: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write every record as one line of JSON, in order, to keep elsewhere.

    Example: `tidegate audit export --output audit.jsonl`
    """

    async def pages(audit: Audit) -> int:
        last = 0
        with output.open("w", encoding="utf-8") if output else contextlib.nullcontext(sys.stdout) as target:
            while page := await audit.records(after=last, limit=_PAGE):
                for record in page:
                    target.write(json.dumps(dataclasses.asdict(record)) + "\n")
                last = page[-1].sequence
        return last

    try:
        count = with_store(lambda store, settings: pages(Audit(store, settings)))
    except OSError as error:
        fail(file_error(error))
    if output:
        typer.echo(f"{count} records written to {output}")


def describe(record: AuditRecord) -> dict[str, Any]:
    """Return a record for JSON: its details as an object, its instant as ISO 8601, UTC."""
    return {**dataclasses.asdict(record), "at": _when(record.at), "details": json.loads(record.details)}


def _when(micro: int) -> str:
    return dt.datetime.fromtimestamp(micro / 1e6, dt.timezone.utc).isoformat(timespec="seconds")
