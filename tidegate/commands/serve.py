"""``tidegate serve``: the gateway alone, in front of Tritons that run elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tidegate.console import fail, file_error, load_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HTTP and gRPC).")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0 picks a free one.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
    triton: Annotated[str | None, typer.Option(help="Tritons: host:grpc_port/http_port, comma-separated.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of keys, database, journal.")] = None,
    model_repository: Annotated[Path | None, typer.Option(help="Folder with the models' recipes.")] = None,
    models: Annotated[str | None, typer.Option(help="Comma-separated models to serve; default: all built.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) of the HTTP and gRPC ports.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Accept clients with certificates of these.")] = None,
    tls_client_auth: Annotated[str | None, typer.Option(help="required, or optional; with --tls-client-ca.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write the addresses there as JSON once listening.")] = None,
) -> None:
    """Run the gateway; Triton runs elsewhere.

    Every option is also a setting: --port is TIDEGATE_PORT, --triton is TIDEGATE_TRITON_URLS.

    Example: tidegate serve --triton 10.0.0.5:8001/8000,10.0.0.6:8001/8000 --port 8080
    """
    given = {
        "host": host, "port": port, "grpc_port": grpc_port, "admin_port": admin_port, "triton_urls": triton,
        "data_dir": data_dir, "model_repository": model_repository, "models": models,
        "tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca, "tls_client_auth": tls_client_auth,
    }  # fmt: skip
    settings = load_settings(given)
    # Here: no other command has to wait for what only a gateway needs.
    from gateway.app import StartupError, run  # noqa: PLC0415

    def announce(addresses: Any) -> None:
        if ready_file is not None:
            partial = ready_file.with_suffix(".partial")
            partial.write_text(json.dumps({"http": addresses.http, "grpc": addresses.grpc, "admin": addresses.admin}))
            partial.rename(ready_file)

    try:
        run(settings, announce)
    except StartupError as error:
        fail(str(error))
    except OSError as error:  # the ready file's
        fail(file_error(error))
