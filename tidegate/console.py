"""What every command shares: settings, one line for a failure, tables or JSON for data, a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gateway.settings import PREFIX, Settings

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def load_settings(given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment, with what was ``given`` on the command line (None: was not) on top.

    A value that is none is one line that names the variable, and exit code 2.
    """
    try:
        return Settings(**{name: value for name, value in (given or {}).items() if value is not None})
    except ValidationError as error:
        fail("; ".join(_bad_setting(item) for item in error.errors(include_url=False)), code=2)


def _bad_setting(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    return f"setting {PREFIX}{name.upper()}: {problem['msg'].removeprefix('Value error, ')}"


def complain(message: str) -> None:
    """Print one line on stderr, as it stands: a path or a model's answer may hold ``[`` and ``]``."""
    err.print(Text.assemble(("error:", "bold red"), " ", message))


def fail(message: str, *, code: int = 1) -> NoReturn:
    """:func:`complain`, and exit with ``code``."""
    complain(message)
    raise typer.Exit(code)


def file_error(error: OSError) -> str:
    """What the disk said, in one line: the file, if it is known, and the reason."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or str(error)) if part)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON, for scripts."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows for people: cells as they stand, never as markup; nothing is cut, and the first column not folded."""
    table = Table(title=Text(title), title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    out.print(table)


def progress() -> Progress:
    """A progress bar on a terminal's stderr that goes when it is done: description, bar, count, time."""
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )  # fmt: skip
