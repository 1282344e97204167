"""Every table of the store, for SQLite and PostgreSQL alike.

Conventions: instants are integers, microseconds since the epoch, UTC (``*_at``); durations are
nanoseconds (``*_ns``); money is an integer of pico-USD (10⁻¹² USD, ``*_pico_usd``), so that sums are
exact on both databases. A change here needs a migration in ``gateway/store/migrations/versions``;
a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- who may call

organisations = Table(
    "organisations",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("name", String(64), primary_key=True),  # unique over all organisations: a principal names it alone
    Column("organisation", String(64), ForeignKey("organisations.name"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
)

tiers = Table(
    "tiers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("limits", Text, nullable=False),  # JSON of gateway.access.limits.Limits
    Column("created_at", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("label", String(128), nullable=False),
    Column("project", String(64), ForeignKey("projects.name"), nullable=False),
    Column("scopes", Text, nullable=False),  # separated by spaces, sorted
    Column("models", Text),  # JSON list; NULL: all models
    Column("addresses", Text),  # JSON list of networks in CIDR notation; NULL: any address
    Column("tier", String(64), nullable=False),
    Column("test", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
    Index("ix_api_keys_project_key_id", "project", "key_id"),
)

key_secrets = Table(
    "key_secrets",
    metadata,
    # A key has one secret, or two while a rotation overlaps: the key's id never changes.
    Column("digest", String(64), primary_key=True),  # HMAC-SHA256(pepper, presented key), hexadecimal
    Column("key_id", String(16), ForeignKey("api_keys.key_id"), nullable=False, index=True),
    Column("pepper_version", Integer, nullable=False),
    Column("last_four", String(4), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),  # end of the overlap; NULL: as long as the key lives
    Column("rotation", String(255)),  # the caller's name for the rotation that made it: idempotent
    UniqueConstraint("key_id", "rotation"),
)

peppers = Table(
    "peppers",
    metadata,
    # Proof that a gateway's pepper file belongs to this store, without holding the pepper.
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("proof", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# --- what a caller may spend

revisions = Table(
    "revisions",
    metadata,
    # Raised with every change of tiers, limit rules and budgets: gateways poll one row.
    Column("subject", String(32), primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

limit_rules = Table(
    "limit_rules",
    metadata,
    # Beside the tier, which applies to each key: a rule for all calls of a project, or to a model.
    Column("level", String(16), primary_key=True),  # organisation, project, key, model
    Column("name", String(128), primary_key=True),
    Column("limits", Text, nullable=False),  # JSON of gateway.access.limits.Limits
    Column("created_at", BigInteger, nullable=False),
)

budgets = Table(
    "budgets",
    metadata,
    Column("level", String(16), primary_key=True),  # organisation, project, key
    Column("name", String(64), primary_key=True),
    Column("period", String(8), primary_key=True),  # day, month (UTC)
    Column("limit_pico_usd", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

budget_windows = Table(
    "budget_windows",
    metadata,
    Column("level", String(16), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("period", String(8), primary_key=True),
    Column("window", String(10), primary_key=True),  # 2026-11-23 or 2026-11
    Column("spent_pico_usd", BigInteger, nullable=False),
    Column("leased_pico_usd", BigInteger, nullable=False),  # handed to gateways, not spent yet
)

budget_leases = Table(
    "budget_leases",
    metadata,
    Column("gateway_id", String(64), primary_key=True),
    Column("level", String(16), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("period", String(8), primary_key=True),
    Column("window", String(10), primary_key=True),
    Column("leased_pico_usd", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    # How often its gateway has written it: tells whether a commit without an answer took place.
    Column("writes", BigInteger, nullable=False, server_default="0"),
)

budget_recounts = Table(
    "budget_recounts",
    metadata,
    # Leases that expired, counted as spent as a whole until the ledger's records correct that.
    Column("recount_id", String(36), primary_key=True),
    Column("level", String(16), nullable=False),
    Column("name", String(64), nullable=False),
    Column("period", String(8), nullable=False),
    Column("window", String(10), nullable=False),
    Column("amount_pico_usd", BigInteger, nullable=False),
    Column("due_at", BigInteger, nullable=False, index=True),
)

# --- what was done to keys, budgets, models: insert-only (triggers in the migration hold it)

audit_records = Table(
    "audit_records",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(128), nullable=False),  # key id, "cli", "system"
    Column("action", String(64), nullable=False),  # key.create, budget.set, …
    Column("object", String(255), nullable=False),
    Column("result", String(32), nullable=False),  # ok, denied, failed
    Column("request_id", String(128), nullable=False),
    Column("address", String(64), nullable=False),
    Column("details", Text, nullable=False),  # canonical JSON
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),  # of the audit record with that sequence
    Column("at", BigInteger, nullable=False),
    Column("previous_signature", String(128), nullable=False),
    Column("signature", String(128), nullable=False),  # Ed25519, hexadecimal
)

# --- what was used (the ledger's; columns in the order of gateway.store.usage.UsageRecord)

usage_records = Table(
    "usage_records",
    metadata,
    Column("usage_id", String(36), primary_key=True),  # UUIDv7 of the gateway: sorts by time
    Column("state", String(16), nullable=False),  # reserved, completed, failed, client_closed, unknown
    Column("organisation", String(64), nullable=False),
    Column("project", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("test", Boolean, nullable=False),
    Column("dialect", String(32), nullable=False),
    Column("operation", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("idempotency_key", String(255)),
    Column("received_at", BigInteger, nullable=False),
    Column("total_ns", BigInteger, nullable=False),
    Column("status", Integer, nullable=False),  # HTTP's; 0 while reserved
    Column("error", String(64)),  # GatewayError.code
    Column("tokens", BigInteger, nullable=False),
    Column("pixels", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("queue_ns", BigInteger, nullable=False),
    Column("compute_ns", BigInteger, nullable=False),
    Column("cache_hits", BigInteger, nullable=False),
    # Pico-USD (10⁻¹²): a small inference costs less than a pico-USD.
    Column("cost_pico_usd", BigInteger, nullable=False),  # of the compute time
    Column("billed_pico_usd", BigInteger, nullable=False),  # 0 for test keys and where nothing was delivered
    Column("basis", String(16), nullable=False),  # none, estimate, measured
    Column("settled", Boolean, nullable=False),
    Column("prices_version", String(64), nullable=False),
    Column("gateway_id", String(64), nullable=False),
    Index("ix_usage_records_project_usage_id", "project", "usage_id"),
    Index("ix_usage_records_key_id_usage_id", "key_id", "usage_id"),
    Index("ix_usage_records_model_usage_id", "model", "usage_id"),
)

# Rows that a restart has to look at; small, whatever the size of the table.
Index(
    "ix_usage_records_unsettled",
    usage_records.c.gateway_id,
    sqlite_where=text("NOT settled"),  # as the queries have it, on both databases
    postgresql_where=text("NOT settled"),
)
Index(
    "ix_usage_records_project_idempotency_key",
    usage_records.c.project,
    usage_records.c.idempotency_key,
    sqlite_where=usage_records.c.idempotency_key.is_not(None),
    postgresql_where=usage_records.c.idempotency_key.is_not(None),
)

usage_daily = Table(
    "usage_daily",
    metadata,
    # Derived from usage_records, rebuildable, compared with them. Reserved records are not in it.
    Column("day", String(10), primary_key=True),  # 2026-11-23, UTC, of received_at
    Column("project", String(64), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("state", String(16), primary_key=True),
    Column("organisation", String(64), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("pixels", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("total_ns", BigInteger, nullable=False),
    Column("queue_ns", BigInteger, nullable=False),
    Column("compute_ns", BigInteger, nullable=False),
    Column("cache_hits", BigInteger, nullable=False),
    Column("cost_pico_usd", BigInteger, nullable=False),
    Column("billed_pico_usd", BigInteger, nullable=False),
    Index("ix_usage_daily_key_id_day", "key_id", "day"),
    Index("ix_usage_daily_project_day", "project", "day"),
)

usage_daily_models = Table(
    "usage_daily_models",
    metadata,
    # The same over all projects and keys: what an operator asks for, whatever the number of keys.
    Column("day", String(10), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("state", String(16), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("pixels", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("total_ns", BigInteger, nullable=False),
    Column("queue_ns", BigInteger, nullable=False),
    Column("compute_ns", BigInteger, nullable=False),
    Column("cache_hits", BigInteger, nullable=False),
    Column("cost_pico_usd", BigInteger, nullable=False),
    Column("billed_pico_usd", BigInteger, nullable=False),
)

usage_totals = Table(
    "usage_totals",
    metadata,
    # Derived like usage_daily, over all days and keys, reserved records included: compared with Triton's counts.
    Column("model", String(128), primary_key=True),
    Column("state", String(16), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
)

# --- what was answered under a client's own key

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project", String(64), primary_key=True),
    Column("test", Boolean, primary_key=True),  # calls with test keys are not billed: theirs are apart
    Column("name", String(255), primary_key=True),  # the header's value
    Column("usage_id", String(36), nullable=False),  # the call that has the key
    Column("digest", String(64), nullable=False),  # SHA-256 of the request, hexadecimal
    Column("created_at", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=False),  # then the call cannot be running any more
    Column("expires_at", BigInteger, nullable=False),
    Column("model", String(128), nullable=False),
    Column("status", Integer, nullable=False),  # HTTP's; 0 while reserved
    Column("media_type", String(255)),
    Column("headers", Text),  # JSON object
    Column("body", LargeBinary),  # NULL: reserved, or not kept
    Column("body_bytes", BigInteger, nullable=False),
    Index("ix_idempotency_keys_expires_at", "expires_at", "body_bytes"),
)
