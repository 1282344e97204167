"""Every ``TIDEGATE_*`` setting: typed, documented, with a safe default; unknown names are refused.

``docs/`` lists them from this file, and a test fails for a field without a description.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "TIDEGATE_"
_TRITON_URL = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<grpc>[0-9]+)(?:/(?P<http>[0-9]+))?")


class TritonAddress(NamedTuple):
    """Where a Triton listens."""

    host: str
    """A name or an address; an IPv6 one without its brackets."""
    grpc_port: int
    http_port: int | None
    """None: it is asked over gRPC alone."""

    @property
    def target(self) -> str:
        """``host:port`` of the gRPC endpoint, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.grpc_port}" if ":" in self.host else f"{self.host}:{self.grpc_port}"

    @classmethod
    def parse(cls, text: str) -> TritonAddress:
        """From ``host:grpc_port`` or ``host:grpc_port/http_port``. Raises :class:`ValueError`."""
        match = _TRITON_URL.fullmatch(text)
        ports = [int(port) for port in match.group("grpc", "http") if port] if match else []
        if match is None or not all(0 < port <= 65535 for port in ports):
            raise ValueError(
                f"{text!r} is no Triton: host:8001 or host:8001/8000 is expected, the gRPC port, then the HTTP port; "
                "without http://, an IPv6 address in brackets"
            )
        return cls(match["host"].strip("[]"), ports[0], ports[1] if match["http"] else None)


class Settings(BaseSettings):
    """Read from the environment (``TIDEGATE_`` + the field's name in capitals)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # --- where things are
    data_dir: Path = Field(Path(".tidegate"), description="Folder of keys, database, journal and logs.")
    model_repository: Path = Field(Path("model_repository"), description="Folder that Triton serves from.")
    models: str = Field(
        "", description="Comma-separated models to serve and to require for readiness; empty: all built."
    )

    # --- listeners
    host: str = Field("127.0.0.1", description="Address of the HTTP listener.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP listener.")
    grpc_port: int = Field(8081, ge=0, le=65535, description="Port of the gRPC listener.")
    admin_host: str = Field("127.0.0.1", description="Address of the admin listener (/metrics).")
    admin_port: int = Field(8082, ge=0, le=65535, description="Port of the admin listener (/metrics).")
    backlog: int = Field(2048, ge=1, description="Connections the kernel may hold before they are accepted.")
    max_connections: int = Field(
        4096, ge=1, description="Open connections of HTTP, and of gRPC; further ones are answered 503 or closed."
    )
    grpc_max_streams: int = Field(100, ge=1, description="Calls in flight on one gRPC connection; further ones wait.")
    keep_alive_s: float = Field(75.0, gt=0, description="Seconds an idle connection is kept.")
    tls_cert: Path | None = Field(
        None, description="Certificate (PEM, with its chain) of the HTTP and gRPC listeners; default: no TLS."
    )
    tls_key: Path | None = Field(None, description="Its private key (PEM, without a password).")
    tls_client_ca: Path | None = Field(None, description="Authorities (PEM) whose client certificates are accepted.")
    tls_client_auth: Literal["required", "optional"] = Field(
        "required", description="With a client CA: required, or optional (what is shown is verified)."
    )
    tls_handshake_timeout_s: float = Field(10.0, gt=0, description="Seconds in which a TLS handshake must be over.")
    tls_reload_s: float = Field(
        5.0, gt=0, description="Seconds between looks at the TLS files; a change is taken over without a restart."
    )

    # --- Triton
    triton_urls: str = Field(
        "127.0.0.1:8001/8000",
        description="Comma-separated host:grpc_port of Tritons; host:grpc_port/http_port infers over HTTP, faster.",
    )
    triton_connect_timeout_s: float = Field(2.0, gt=0, description="Seconds to connect before another server is tried.")
    triton_health_interval_s: float = Field(1.0, gt=0, description="Seconds between readiness probes of each server.")
    triton_eject_after: int = Field(3, ge=1, description="Consecutive failures that take a server out of the pool.")
    triton_eject: bool = Field(True, description="Let a server rest that fails again and again.")
    triton_retry_ratio: float = Field(
        0.1, ge=0, le=1, description="Retries on another server, at most this part of the requests (0: none)."
    )
    triton_cancel_since: str = Field(
        "2.58",
        pattern=r"^\d+(\.\d+)*$",
        description="Version of Triton from which it is told of cancellations; older ones may crash of it.",
    )
    triton_max_outstanding: int = Field(
        256, ge=1, description="Requests in flight to one server; more go to others, or are refused (503)."
    )

    triton_http_port: int = Field(8000, ge=0, le=65535, description="Port of the embedded Triton's HTTP endpoint.")
    triton_grpc_port: int = Field(8001, ge=0, le=65535, description="Port of the embedded Triton's gRPC endpoint.")
    triton_metrics_port: int = Field(8002, ge=0, le=65535, description="Port of the embedded Triton's metrics.")
    triton_stop_s: float = Field(10.0, ge=0, description="Seconds the embedded Triton has to end before it is killed.")
    dashboard_port: int = Field(8501, ge=0, le=65535, description="Port of the dashboard that `tidegate up` starts.")

    # --- the way through
    default_timeout_s: float = Field(30.0, gt=0, description="Deadline of a request that names none.")
    max_timeout_s: float = Field(300.0, gt=0, description="Longest deadline that a request may ask for.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body, after decompression.")
    max_buffered_bytes: int = Field(
        2**30, ge=2**16, description="All large request bodies in memory together; further ones are answered 503."
    )
    header_timeout_s: float = Field(10.0, gt=0, description="Seconds in which a request's headers must have arrived.")
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds in which a request's body must have arrived.")
    max_queue: int = Field(2048, ge=1, description="Requests waiting for one model before 503 is answered.")
    coalesce: bool = Field(True, description="Let waiting requests for one model and shape travel to Triton together.")
    shed: bool = Field(True, description="Refuse at once (503) a request that would wait past its deadline.")
    coalesce_in_flight: int = Field(
        2, ge=1, description="Triton requests in flight for a model on each server before others wait and coalesce."
    )
    coalesce_retry: bool = Field(
        True,
        description="Execute again, in smaller batches, what was in a batch that failed (off: if idempotent).",
    )
    deadlines: bool = Field(True, description="Answer 504 when a request's deadline passes.")
    cancel: bool = Field(True, description="Take back the work of clients that have gone (off: it is ended).")
    length_buckets: bool = Field(True, description="Pad token ids to a bucket (off: to the longest text of the call).")
    preprocess_threads: int = Field(2, ge=1, description="Threads that decode images and tokenise long texts.")
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="Largest picture, from its header, before it is decoded."
    )
    max_batch_items: int = Field(256, ge=1, description="Texts or images in one task call.")
    max_text_chars: int = Field(200_000, ge=1, description="Longest single text in a task call.")
    max_call_pixels: int = Field(
        200_000_000, ge=1, description="Pixels of all pictures in one task call, from their headers."
    )
    max_call_chars: int = Field(2_000_000, ge=1, description="Characters of all texts in one task call.")
    shutdown_delay_s: float = Field(0.0, ge=0, description="Seconds that requests are still accepted after SIGTERM.")
    drain_s: float = Field(30.0, ge=0, description="Seconds that requests in flight have to finish at shutdown.")

    # --- access
    pepper_file: Path | None = Field(
        None, description="File with the pepper of the key hashes; default: data_dir/pepper, made on first start."
    )
    key_cache_ttl_s: float = Field(
        5.0,
        gt=0,
        le=60,
        description="Seconds a verified key is trusted without asking the database: the revocation bound.",
    )
    audit_key_file: Path | None = Field(
        None, description="File with the audit's signing key; default: data_dir/audit.key, made on first start."
    )
    key_outage_ttl_s: float = Field(
        60.0, ge=0, le=60, description="Seconds a verified key goes on working while the database is away."
    )
    key_cache_size: int = Field(10_000, ge=1, description="Verified keys kept in memory.")

    oidc_issuer: str | None = Field(None, description="OpenID Connect issuer whose tokens are accepted beside keys.")
    oidc_audience: str | None = Field(None, description="Audience that its tokens must name; needed with the issuer.")
    oidc_jwks_url: str | None = Field(None, description="Its key set; default: what the issuer's discovery says.")
    oidc_project_claim: str = Field("tidegate_project", description="Claim that names the caller's project.")
    oidc_default_project: str | None = Field(None, description="Project of tokens without that claim.")
    oidc_scopes_claim: str = Field("scope", description="Claim that lists the caller's scopes.")
    redis_timeout_s: float = Field(0.005, gt=0, le=1, description="Seconds for Redis before limits are local.")
    budget_floor_usd: float = Field(
        1e-5, gt=0, description="USD reserved in a budget for a request whose cost cannot be estimated yet."
    )

    # --- idempotency keys
    idempotency_keep_s: float = Field(
        86_400.0, gt=0, description="Seconds that a key and its answer are kept; then the key is new again."
    )
    idempotency_max_body_bytes: int = Field(
        2**20, ge=0, description="Largest answer that is kept; a repeated request gets 409 for a larger one."
    )
    idempotency_max_stored_bytes: int = Field(
        2**30, ge=0, description="All kept answers together; above it new ones are not kept, as if too large."
    )

    # --- ledger
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL; default: SQLite in data_dir. PostgreSQL: postgresql+asyncpg://host/name."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey for limits shared between gateways; default: local limits."
    )
    metering: bool = Field(True, description="Write usage records (off only to measure what they cost).")
    journal_sync_ms: float = Field(
        50.0, ge=0, description="Milliseconds between fsyncs of the journal; 0: before every answer."
    )
    journal_max_bytes: int = Field(
        2**30, ge=2**16, description="Journal kept while the database is away, before requests are refused."
    )
    prices_file: Path | None = Field(None, description="Price list; default: prices.toml of the package.")

    # --- telemetry
    log_level: str = Field("info", description="debug, info, warning, error.")
    log_json: bool = Field(True, description="Log lines as JSON.")
    otlp_endpoint: str | None = Field(
        None, description="Base URL of an OpenTelemetry collector (OTLP over HTTP, extra `otel`); default: no export."
    )
    otlp_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of calls to trace of those whose client sent no trace context."
    )

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @field_validator("triton_urls")
    @classmethod
    def _known_tritons(cls, value: str) -> str:
        addresses = _split(value)
        if not addresses:
            raise ValueError("names no Triton: host:8001/8000 is expected, the gRPC port, then the HTTP port")
        for address in addresses:
            TritonAddress.parse(address)
        return value

    @property
    def model_names(self) -> tuple[str, ...]:
        """``models``, split."""
        return _split(self.models)

    @property
    def triton_targets(self) -> tuple[str, ...]:
        """``triton_urls``, split."""
        return _split(self.triton_urls)


def _split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated setting."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


CLIENT_PREFIX = "TIDEGATE_DASHBOARD_"
"""Variables of the dashboard, which checks its own."""
CLIENT_VARIABLES = ("TIDEGATE_KEY", "TIDEGATE_URL")
"""What clients and the documentation's examples read."""


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Names that begin with ``TIDEGATE_`` and are no setting: a typing error that must not pass."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | set(CLIENT_VARIABLES)
    names = os.environ if environment is None else environment
    return sorted(
        name for name in names if name.startswith(PREFIX) and name not in known and not name.startswith(CLIENT_PREFIX)
    )
