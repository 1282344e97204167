"""``tidegate up``: everything on this machine, from one command."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from gateway.settings import Settings
from tidegate.commands.models import stale_models
from tidegate.console import err, fail, file_error, load_settings, out, progress
from tidegate.demo_key import DemoKeyError, ensure_demo_key
from tidegate.processes import ChildProcess
from tidegate.stack import Stack, StackError

DEMO_KEY = "demo.key"
INTERRUPTED = 130
"""Exit code of a start that was ended by Ctrl-C, as shells have it: 128 + SIGINT."""


def up(
    host: Annotated[str | None, typer.Option(help="Address that gateway and dashboard listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0 picks a free one.")] = None,
    dashboard_port: Annotated[int | None, typer.Option(help="Port of the dashboard; 0 picks a free one.")] = None,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Run without the dashboard.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of keys, database, journal and logs.")] = None,
    model_repository: Annotated[Path | None, typer.Option(help="Folder that Triton serves from.")] = None,
    models: Annotated[str | None, typer.Option(help="Comma-separated models to serve; default: all.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) of the HTTP and gRPC ports.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Accept clients with certificates of these.")] = None,
    tls_client_auth: Annotated[str | None, typer.Option(help="required, or optional; with --tls-client-ca.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write where everything is there as JSON, once ready.")
    ] = None,
) -> None:
    """Build what is missing, then run Triton, the gateway and the dashboard until Ctrl-C.

    Example: tidegate up --models sentiment,qa --port 9000 --no-dashboard
    """
    settings = load_settings(
        {
            "host": host,
            "port": port,
            "grpc_port": grpc_port,
            "dashboard_port": dashboard_port,
            "data_dir": data_dir,
            "model_repository": model_repository,
            "models": models,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "tls_client_ca": tls_client_ca,
            "tls_client_auth": tls_client_auth,
        }
    )
    key_file = settings.data_dir / DEMO_KEY
    stack = Stack(settings, dashboard=not no_dashboard, say=lambda line: err.print(line, markup=False, highlight=False))
    ready = False
    with _terminated_as_interrupt():
        try:
            stack.check()
            _build_missing(settings)
            ensure_demo_key(settings, key_file)
            _start(stack, key_file)
            _announce(stack, key_file, ready_file)
            ready = True
            stack.watch()
        except (DemoKeyError, StackError) as error:
            fail(str(error))
        except OSError as error:  # the ready file's
            fail(file_error(error))
        except KeyboardInterrupt:
            err.print("\nstopping …")
        finally:
            with _interrupts_ignored():
                stack.stop()
    err.print("stopped; nothing is left running")
    if not ready:
        raise typer.Exit(INTERRUPTED)


def _build_missing(settings: Settings) -> None:
    """Build what is not up to date, in a process of its own: what building imports would stay in memory for good."""
    stale = [card.name for card in stale_models(settings, settings.model_names)]
    if not stale:
        return
    build = ChildProcess(
        "build", ["tidegate", "models", "build", *stale], None,
        {"TIDEGATE_MODEL_REPOSITORY": str(settings.model_repository)},
    )  # fmt: skip
    try:
        status = build.wait()
    finally:
        build.stop(10.0)
    if status:
        raise typer.Exit(1)  # the build has said why


def _start(stack: Stack, key_file: Path) -> None:
    with progress() as bar:
        task = bar.add_task("loading models into Triton", total=None)

        def on_model(name: str, ready: int, total: int) -> None:
            bar.update(task, description=f"loading models into Triton: {name}", completed=ready, total=total)
            if ready == total:
                bar.update(task, description="starting the gateway and the dashboard")

        stack.start(key_file, on_model)


def _announce(stack: Stack, key_file: Path, ready_file: Path | None) -> None:
    example = "sentiment" if "sentiment" in stack.models else stack.models[0]
    shown = os.path.relpath(key_file)
    out.print("\nTidegate is ready.", style="bold green")
    typer.echo(
        f"""
  gateway     {stack.gateway_url}   (API description: {stack.gateway_url}/docs)
  gRPC        {stack.grpc_address}
  dashboard   {stack.dashboard_url or "not started"}
  metrics     {stack.metrics_url}
  demo key    {shown}
  models      {", ".join(stack.models)}

Try it:

  {_curl(stack, example, shown)}

Ctrl-C stops everything.
"""
    )
    if ready_file is not None:
        triton = stack.triton
        where = {
            "gateway_url": stack.gateway_url,
            "grpc_address": stack.grpc_address,
            "metrics_url": stack.metrics_url,
            "dashboard_url": stack.dashboard_url,
            "key_file": str(key_file.resolve()),
            "models": stack.models,
            "triton": {"http": triton.http_url, "grpc": triton.grpc_url, "metrics": triton.metrics_url}
            if triton
            else None,
            "pid": os.getpid(),
        }
        partial = ready_file.with_suffix(".partial")
        partial.write_text(json.dumps(where, indent=2))
        partial.rename(ready_file)
    sys.stdout.flush()


def _curl(stack: Stack, model: str, key_file: str) -> str:
    certificate = stack.settings.tls_cert
    curl = f"curl -s --cacert {shlex.quote(os.path.relpath(certificate))}" if certificate else "curl -s"
    key = f'-H "Authorization: Bearer $(cat {shlex.quote(key_file)})"'
    if model == "sentiment":
        body = '{"inputs": "The tide came in, and it was wonderful."}'
        return f"{curl} {stack.gateway_url}/hf/models/sentiment {key} -d '{body}'"
    return f"{curl} {stack.gateway_url}/v2/models/{model} {key}"


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: in order, leaving nothing behind.

    SIGINT is taken explicitly too: a shell's background jobs inherit it ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A second Ctrl-C while stopping must not leave processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
