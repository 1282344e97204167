"""What the admin API reads and shows. Unknown fields are refused: nothing is assigned by accident."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from gateway.access.budgets import BudgetState
from gateway.access.chain import AuditRecord
from gateway.access.key import IssuedKey, Key, instant
from gateway.access.policy import PICO

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @field_validator("*")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        """Refuse NUL, which PostgreSQL takes in no text, and halves of surrogate pairs, which are none."""
        texts = value if isinstance(value, list) else [value]
        if any(_UNSTORABLE.search(text) for text in texts if isinstance(text, str)):
            raise ValueError("must not hold NUL or halves of surrogate pairs")
        return value


class NewKey(_Body):
    """A key to be made."""

    project: str
    label: str = ""
    scopes: list[str] = Field(default_factory=lambda: ["infer"], max_length=16)
    models: Annotated[list[str], Field(max_length=1000)] | None = None
    addresses: Annotated[list[str], Field(max_length=1000)] | None = None
    tier: str | None = Field(None, description="Default: `default`; of a tenant's administrator, the caller's own.")
    test: bool = Field(False, description="Metered, never billed; the operator's to give.")
    expires_at: AwareDatetime | None = None


class KeyChanges(_Body):
    """What may be changed of a key; fields left out stay."""

    label: str | None = None
    scopes: Annotated[list[str], Field(max_length=16)] | None = None
    models: Annotated[list[str], Field(max_length=1000)] | None = None
    addresses: Annotated[list[str], Field(max_length=1000)] | None = None
    tier: str | None = None
    expires_at: AwareDatetime | None = None


class Rotation(_Body):
    """How a key is to be rotated."""

    overlap_s: float = Field(3600.0, ge=0, le=90 * 86_400, description="Seconds the old secret goes on working.")
    rotation: str | None = Field(None, min_length=1, max_length=255, description="Its name: again, it changes nothing.")


class NewOrganisation(_Body):
    """An organisation to be made."""

    name: str


class NewProject(_Body):
    """A project to be made; its organisation defaults to the caller's."""

    name: str
    organisation: str | None = None


class NewBudget(_Body):
    """What may be spent in the period."""

    limit_usd: Decimal = Field(ge=0, le=1_000_000, decimal_places=12)


def show_key(key: Key, now: float) -> dict[str, Any]:
    """Return a key without its secret."""
    return {
        "key_id": key.key_id,
        "prefix": key.prefix,
        "label": key.label,
        "project": key.project,
        "organisation": key.organisation,
        "scopes": list(key.scopes),
        "models": None if key.models is None else list(key.models),
        "addresses": None if key.addresses is None else list(key.addresses),
        "tier": key.tier,
        "test": key.test,
        "state": key.state(now),
        "created_at": instant(key.created_at),
        "expires_at": instant(key.expires_at),
        "revoked_at": instant(key.revoked_at),
        "last_used_at": instant(key.last_used_at),
        "secrets": [
            {
                "last_four": secret.last_four,
                "created_at": instant(secret.created_at),
                "expires_at": instant(secret.expires_at),
            }
            for secret in key.secrets
        ],
    }


def show_issued(issued: IssuedKey, now: float) -> dict[str, Any]:
    """Return a key just made, with its text: the one time that it is shown."""
    return {"key": issued.text, **show_key(issued.key, now)}


def show_budget(state: BudgetState) -> dict[str, Any]:
    """Return a budget and how it stands; money as decimal text, exact."""
    budget = state.budget
    return {
        "level": budget.level,
        "name": budget.name,
        "period": budget.period,
        "window": state.window,
        "limit_usd": usd(budget.limit_pico_usd),
        "spent_usd": usd(state.spent_pico_usd),
        "held_usd": usd(state.leased_pico_usd),
    }


def show_record(record: AuditRecord) -> dict[str, Any]:
    """Return an audit record."""
    return {
        "sequence": record.sequence,
        "at": instant(record.at / 1e6),
        "actor": record.actor,
        "action": record.action,
        "object": record.object,
        "result": record.result,
        "request_id": record.request_id,
        "address": record.address,
        "details": record.details,
        "hash": record.hash,
    }


def usd(pico: int) -> str:
    """Write pico-USD as USD."""
    return f"{Decimal(pico) / PICO:f}"
