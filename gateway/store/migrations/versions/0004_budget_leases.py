"""Budget leases: how often each was written; lost ones remembered until the ledger has corrected them.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the table."""
    # The default is for gateways of the release before, which run on while this one is rolled out.
    op.add_column("budget_leases", sa.Column("writes", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "budget_recounts",
        sa.Column("recount_id", sa.String(length=36), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=8), nullable=False),
        sa.Column("window", sa.String(length=10), nullable=False),
        sa.Column("amount_pico_usd", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("recount_id", name=op.f("pk_budget_recounts")),
    )
    op.create_index(op.f("ix_budget_recounts_due_at"), "budget_recounts", ["due_at"], unique=False)


def downgrade() -> None:
    """Drop them: what lost leases are counted as spent too much stays counted."""
    op.drop_index(op.f("ix_budget_recounts_due_at"), table_name="budget_recounts")
    op.drop_table("budget_recounts")
    op.drop_column("budget_leases", "writes")
