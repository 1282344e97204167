"""``python -m embedded``: a Triton in the foreground, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from embedded.errors import EmbeddedTritonError
from embedded.launcher import EmbeddedTriton


def main(
    model_repository: Annotated[Path, typer.Option(help="Folder that Triton serves from.")] = Path("model_repository"),
    work_dir: Annotated[Path, typer.Option(help="Folder for the log and the backends.")] = Path(".tidegate/triton"),
    models: Annotated[str, typer.Option(help="Comma-separated models to load.")] = "",
    http_port: Annotated[int, typer.Option(help="HTTP port on loopback; 0: a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port on loopback; 0: a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Metrics port on loopback; 0: a free one.")] = 8002,
    log_verbose: Annotated[int, typer.Option(help="Triton's verbosity.")] = 0,
) -> None:
    """Serve a model repository with the embedded Triton, restarting it should it die, until Ctrl-C.

    Example: python -m embedded --model-repository model_repository --models identity,qa
    """
    names = [name.strip() for name in models.split(",") if name.strip()]
    triton = EmbeddedTriton(model_repository, work_dir, names, http_port, grpc_port, metrics_port, log_verbose)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        triton.start()
        triton.wait_ready(on_model=lambda name, ready, total: typer.echo(f"{name} is ready ({ready} of {total})"))
        triton.watch(
            on_restart=lambda: typer.echo("Triton had died and was restarted", err=True),
            on_error=lambda error: typer.echo(f"error: {error}", err=True),
        )
        typer.echo(f"HTTP {triton.http_url}  gRPC {triton.grpc_url}  metrics {triton.metrics_url}  pid {triton.pid}")
        ended.wait()
    except EmbeddedTritonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        triton.stop()


if __name__ == "__main__":
    typer.run(main)
