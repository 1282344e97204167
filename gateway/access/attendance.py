"""Whether the audit was kept: every gateway writes that it is there, and one that falls silent shows.

A chain proves that no record was changed or removed, not that records went on being written. So each
gateway records its start, that it is there (every ``every_s`` seconds), and its end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from gateway.access.chain import AuditRecord

STARTED, PRESENT, STOPPED = "gateway.start", "gateway.present", "gateway.stop"
"""Actions; the object is the gateway."""
EVERY_S = 3600

_MISSED = 2
"""Intervals without a word that are a silence."""
_MICROSECOND = 1_000_000


@dataclass(slots=True, frozen=True)
class Silence:
    """A gateway that wrote nothing more without having ended: it was killed, or its audit was stopped."""

    gateway: str
    sequence: int
    """Its last record."""
    since: int
    """When that was written, in microseconds since the epoch."""


class Attendance:
    """Reads records in order and says who fell silent. Pure: no clock, no store."""

    def __init__(self) -> None:
        self._here: dict[str, tuple[AuditRecord, int]] = {}
        self._silences: list[Silence] = []

    def feed(self, record: AuditRecord) -> None:
        """Read the next record."""
        self._look(record.at)
        if record.action in (STARTED, PRESENT):
            self._here[record.object] = (record, record.at + _MISSED * _interval(record) * _MICROSECOND)
        elif record.action == STOPPED:
            self._here.pop(record.object, None)

    def finish(self, now: int) -> tuple[Silence, ...]:
        """Return the silences until ``now`` (microseconds since the epoch), in order of their last records."""
        self._look(now)
        return tuple(sorted(self._silences, key=lambda silence: silence.sequence))

    def _look(self, now: int) -> None:
        for gateway, (record, until) in list(self._here.items()):
            if now > until:
                self._silences.append(Silence(gateway, record.sequence, record.at))
                del self._here[gateway]


def details() -> dict[str, int]:
    """What a gateway adds to its records: when to expect the next one."""
    return {"every_s": EVERY_S}


def _interval(record: AuditRecord) -> int:
    try:
        return int(json.loads(record.details)["every_s"])
    except (ValueError, KeyError, TypeError):  # somebody changed it, which the chain says
        return EVERY_S
