"""What a key is: as asked for, as stored, as issued. Pure; :mod:`gateway.access.keys` works on it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from dataclasses import dataclass, field

from gateway.errors import Invalid
from gateway.redaction import holds_key
from gateway.types import SCOPES, Principal

OPERATOR = "tidegate"
"""The organisation of whoever runs the gateway: its keys with ``keys:admin`` reach every tenant."""
OPERATOR_PROJECT = "operations"
DEFAULT_TIER = "default"
"""The tier of keys that were given no other, and whose limits hold where a key's own tier is not defined."""

LAST_INSTANT = 253_402_300_799.0
"""9999-12-31T23:59:59Z, in seconds since the epoch: the last one that ISO 8601 writes with four digits of a year."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_LABEL = 128


@dataclass(slots=True, frozen=True)
class KeySpec:
    """What a new key is to be. :meth:`Keys.create` raises ``Invalid`` naming the field at fault."""

    project: str
    label: str = ""
    scopes: tuple[str, ...] = ("infer",)
    models: tuple[str, ...] | None = None
    """None: every model."""
    addresses: tuple[str, ...] | None = None
    """Networks in CIDR notation that the key may be used from; None: anywhere."""
    tier: str = DEFAULT_TIER
    test: bool = False
    expires_at: float | None = None
    """Seconds since the epoch; None: never."""


@dataclass(slots=True, frozen=True)
class Key:
    """A key as the store knows it; the secret is not among it. Instants in seconds since the epoch."""

    key_id: str
    label: str
    project: str
    organisation: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    addresses: tuple[str, ...] | None
    tier: str
    test: bool
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    secrets: tuple[KeySecret, ...] = ()

    @property
    def prefix(self) -> str:
        """What a key may be recognised by: its text up to the secret."""
        return f"tg_{'test' if self.test else 'live'}_{self.key_id}"

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked`` at ``now`` (seconds since the epoch)."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def principal(self) -> Principal:
        """Return who calls with this key."""
        return Principal(
            key_id=self.key_id,
            project=self.project,
            organisation=self.organisation,
            scopes=frozenset(self.scopes),
            models=None if self.models is None else frozenset(self.models),
            tier=self.tier,
            test=self.test,
        )


@dataclass(slots=True, frozen=True)
class KeySecret:
    """One secret of a key, without the secret."""

    last_four: str
    created_at: float
    expires_at: float | None
    """End of a rotation's overlap."""


@dataclass(slots=True, frozen=True)
class IssuedKey:
    """A key just made or rotated. ``text`` is shown once; None where a rotation was done before."""

    key: Key
    text: str | None = field(repr=False)


@dataclass(slots=True, frozen=True)
class VerifiedKey:
    """A presented key that is valid now, and until when at the latest (seconds since the epoch)."""

    key: Key
    valid_until: float | None


def check_name(field_name: str, value: str) -> None:
    """Refuse a name of an organisation, project or tier that is none. Raises ``Invalid``."""
    if not _NAME.fullmatch(value):
        raise Invalid(
            f"{field_name} must be 1 to 63 lower-case letters, digits, dots, dashes or underscores.", param=field_name
        )


def check_model(field_name: str, value: str) -> None:
    """Refuse what cannot be a model's name. Raises ``Invalid``."""
    if not _MODEL.fullmatch(value) or holds_key(value):
        raise Invalid(f"{field_name} must be names of models.", param=field_name)


def validate(spec: KeySpec, now: float) -> None:
    """Refuse a specification with a field at fault. Raises ``Invalid``."""
    check_name("project", spec.project)
    check_name("tier", spec.tier)
    if len(spec.label) > _MAX_LABEL or not spec.label.isprintable():
        raise Invalid(f"label must be at most {_MAX_LABEL} printable characters.", param="label")
    if holds_key(spec.label):
        raise Invalid("label must not hold an API key.", param="label")
    _check_scopes(spec.scopes)
    for model in spec.models or ():
        check_model("models", model)
    try:
        for address in spec.addresses or ():
            ipaddress.ip_network(address)
    except ValueError:
        raise Invalid("addresses must be networks in CIDR notation.", param="addresses") from None
    if spec.expires_at is not None and not now < spec.expires_at <= LAST_INSTANT:
        raise Invalid("expires_at must be in the future, and before the year 10000 (UTC).", param="expires_at")


def instant(seconds: float | None) -> str | None:
    """Write seconds since the epoch as ISO 8601, UTC; an instant beyond the last that can be written as that one."""
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(min(seconds, LAST_INSTANT), dt.timezone.utc).isoformat(timespec="seconds")


def _check_scopes(scopes: tuple[str, ...]) -> None:
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise Invalid(f"scopes must be some of: {', '.join(SCOPES)}.", param="scopes")
