"""The ``tidegate`` command: thin, it calls the packages."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from gateway.settings import unknown_variables
from tidegate.commands import audit, bench, keys, models, serve, up, usage
from tidegate.console import fail

app = typer.Typer(
    name="tidegate",
    help="Models as a service: an authenticated, metered gateway in front of NVIDIA Triton Inference Server.\n\n"
    "Example: `tidegate up`",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Check what every command needs: that no TIDEGATE_* variable is misspelt."""
    if show_version:
        typer.echo(version("tidegate"))
        raise typer.Exit
    unknown = unknown_variables()
    if unknown:
        fail(f"no such setting: {', '.join(unknown)} (docs/02-settings.md lists them all)", code=2)


app.command()(up.up)
app.command()(serve.serve)
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(usage.app, name="usage")
app.add_typer(audit.app, name="audit")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(up.INTERRUPTED)
