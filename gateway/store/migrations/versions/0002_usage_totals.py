"""Sums of the usage records over all keys: in all, for the comparison with Triton's counts, and by day.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


_SUMS = (
    "requests", "tokens", "pixels", "rows", "bytes_in", "bytes_out", "total_ns", "queue_ns", "compute_ns", "cache_hits",
    "cost_pico_usd", "billed_pico_usd",
)  # fmt: skip


def upgrade() -> None:
    """Make the tables and fill them from what is there."""
    op.create_table(
        "usage_totals",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "state", name=op.f("pk_usage_totals")),
    )
    op.execute(
        "INSERT INTO usage_totals (model, state, requests, rows) "
        'SELECT model, state, count(*), CAST(sum("rows") AS bigint) FROM usage_records GROUP BY model, state'
    )
    op.create_table(
        "usage_daily_models",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS),
        sa.PrimaryKeyConstraint("day", "model", "state", name=op.f("pk_usage_daily_models")),
    )
    names = ", ".join(f'"{name}"' for name in _SUMS)
    sums = ", ".join(f'CAST(sum("{name}") AS bigint)' for name in _SUMS)
    op.execute(
        f"INSERT INTO usage_daily_models (day, model, state, {names}) "  # noqa: S608
        f"SELECT day, model, state, {sums} FROM usage_daily GROUP BY day, model, state"
    )


def downgrade() -> None:
    """Drop them; the records stay."""
    op.drop_table("usage_daily_models")
    op.drop_table("usage_totals")
