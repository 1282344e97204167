"""Usage records made from calls, and what of a client's may stand in them."""

from __future__ import annotations

import time
from typing import Literal

from gateway.redaction import redact
from gateway.store.usage import UsageRecord
from gateway.types import Call

End = Literal["completed", "failed", "client_closed"]
"""How a call may end while the gateway lives; a restart adds ``unknown``."""


def reserved(call: Call, now: float) -> UsageRecord:
    """The record of a call that is about to be forwarded, ``now`` in seconds since the epoch.

    ``ValueError`` before authentication or model choice.
    """
    principal, units = call.principal, call.units
    if principal is None or not call.model:
        raise ValueError("a call is recorded once its principal and its model are known")
    age_ns = time.monotonic_ns() - call.received_ns
    return UsageRecord(
        usage_id=call.usage_id,
        state="reserved",
        organisation=principal.organisation,
        project=principal.project,
        key_id=principal.key_id,
        test=principal.test,
        dialect=call.dialect,
        operation=_clean(call.operation, 64),
        model=call.model,
        request_id=_clean(call.request_id, 128),
        idempotency_key=None if call.idempotency_key is None else _clean(call.idempotency_key, 255),
        received_at=int(now * 1e6) - age_ns // 1000,
        tokens=units.tokens,
        pixels=units.pixels,
        rows=units.rows,
        bytes_in=call.bytes_in,
    )


def end(record: UsageRecord, call: Call, state: End, status: int, error: str | None) -> None:
    """Turn a reserved record into the final one; its cost is settled later, unless there is none."""
    units = call.units
    record.state = state
    record.status = status
    record.error = None if error is None else _clean(error, 64)
    record.total_ns = time.monotonic_ns() - call.received_ns
    record.tokens, record.pixels, record.rows = units.tokens, units.pixels, units.rows
    record.bytes_in, record.bytes_out = call.bytes_in, call.bytes_out
    record.settled = state != "completed"


def _clean(value: str, length: int) -> str:
    """What every database takes: no NUL, no lone surrogate, no longer than its column; and no API key."""
    value = redact(value)
    if value.isascii() and value.isprintable():
        return value[:length]
    return value.encode("utf-8", "replace").decode().replace("\0", "?")[:length]
