"""The hash chain of the audit, pure: how records are hashed and signed, how tampering is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

GENESIS = "0" * 64
"""``previous_hash`` of the first record, ``previous_signature`` of the first checkpoint."""


@dataclass(slots=True, frozen=True)
class AuditRecord:
    """Who did what to what, when, from where, with which result."""

    sequence: int
    """From 1, without gaps."""
    at: int
    """Microseconds since the epoch."""
    actor: str
    action: str
    object: str
    result: str
    request_id: str
    address: str
    details: str
    """Canonical JSON."""
    previous_hash: str
    hash: str = ""

    def computed_hash(self) -> str:
        """SHA-256 over every other field; JSON keeps their borders."""
        values = [getattr(self, field.name) for field in fields(self) if field.name != "hash"]
        return hashlib.sha256(canonical(values).encode()).hexdigest()


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """A signed statement that record ``sequence`` had this hash."""

    number: int
    sequence: int
    hash: str
    at: int
    previous_signature: str
    signature: str = ""

    def payload(self) -> bytes:
        """Return what is signed."""
        return canonical(["tidegate-audit-checkpoint", self.number, self.sequence, self.hash, self.at,
                          self.previous_signature]).encode()  # fmt: skip

    def line(self) -> bytes:
        """Return the checkpoint as one line of the anchor file."""
        return (canonical(asdict(self)) + "\n").encode()


@dataclass(slots=True, frozen=True)
class Finding:
    """The first thing that is wrong, and at which record."""

    sequence: int
    """The first bad (or missing) record."""
    reason: str


def canonical(value: Any) -> str:
    """Write JSON in one way only: sorted names, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse_anchor(lines: Iterable[bytes]) -> list[Checkpoint] | Finding:
    """Read the anchor file; a line that is no checkpoint is a finding, a torn last line is not."""
    checkpoints: list[Checkpoint] = []
    for line in lines:
        if not line.endswith(b"\n"):
            break  # the power went while it was written; the store has the checkpoint
        try:
            checkpoints.append(Checkpoint(**json.loads(line)))
        except (ValueError, TypeError):
            last = checkpoints[-1].sequence if checkpoints else 0
            return Finding(last + 1, "the anchor file has a line that is no checkpoint")
    return checkpoints


class ChainVerifier:
    """Walks checkpoints, then the anchor file's, then the records, each in order, and keeps the first finding.

    The checkpoints are the store's, without gaps; the anchored ones those of a gateway's anchor file (its
    own only, where there are several gateways), which whoever holds the database cannot rewrite.
    Both must be signed by ``key``, and both must agree with the records.
    """

    def __init__(self, key: Ed25519PublicKey) -> None:
        self.records = 0
        self.last_hash = GENESIS
        self._key = key
        self._findings: list[Finding] = []
        self._expected: dict[int, str] = {}
        self._stored: dict[int, Checkpoint] = {}
        self._last_signature = GENESIS

    @property
    def checkpoints(self) -> int:
        """Checkpoints of the store so far."""
        return len(self._stored)

    def feed_checkpoints(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Check the store's next checkpoints, in order of ``number``."""
        for checkpoint in checkpoints:
            number = self.checkpoints + 1
            if checkpoint.number != number:
                self._note(checkpoint.sequence, f"checkpoint {number} is missing from the store")
            elif checkpoint.previous_signature != self._last_signature:
                self._note(checkpoint.sequence, f"checkpoint {number} does not continue the one before it")
            self._expect(checkpoint)
            self._stored[checkpoint.number] = checkpoint
            self._last_signature = checkpoint.signature

    def feed_anchored(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Compare checkpoints of the anchor file with the store's, which were all fed before."""
        for checkpoint in checkpoints:
            if self._stored.get(checkpoint.number) != checkpoint:
                self._expect(checkpoint)
                self._note(checkpoint.sequence, f"the store lacks checkpoint {checkpoint.number} of the anchor file")

    def feed(self, record: AuditRecord) -> None:
        """Check the next record, as the store returns it in order of ``sequence``."""
        expected = self.records + 1
        if record.sequence != expected:
            self._note(expected, f"record {expected} is missing")
        elif record.previous_hash != self.last_hash:
            self._note(record.sequence, f"record {record.sequence} does not continue the record before it")
        elif record.computed_hash() != record.hash:
            self._note(record.sequence, f"record {record.sequence} was changed")
        wanted = self._expected.pop(record.sequence, None)
        if wanted is not None and wanted != record.hash:
            self._note(record.sequence, f"record {record.sequence} is not the one that checkpoint was signed for")
        self.records = record.sequence
        self.last_hash = record.hash

    def finish(self) -> Finding | None:
        """Return the finding of the lowest record; None: the chain is whole."""
        beyond = sorted(sequence for sequence in self._expected if sequence > self.records)
        if beyond:
            self._note(
                self.records + 1,
                f"record {self.records + 1} and later ones are missing: a checkpoint was signed for {beyond[-1]}",
            )
        return min(self._findings, key=lambda finding: finding.sequence, default=None)

    def _expect(self, checkpoint: Checkpoint) -> None:
        at = checkpoint.sequence
        if not _signed_by(self._key, checkpoint):
            self._note(at, f"checkpoint {checkpoint.number} is not signed by this audit's key")
        elif self._expected.setdefault(at, checkpoint.hash) != checkpoint.hash:
            self._note(at, f"two signed checkpoints disagree about record {at}")

    def _note(self, sequence: int, reason: str) -> None:
        self._findings.append(Finding(sequence, reason))


def record_from(row: Mapping[str, Any]) -> AuditRecord:
    """Make a record of a row of the store."""
    return AuditRecord(**{field.name: row[field.name] for field in fields(AuditRecord)})


def checkpoint_from(row: Mapping[str, Any]) -> Checkpoint:
    """Make a checkpoint of a row of the store."""
    return Checkpoint(**{field.name: row[field.name] for field in fields(Checkpoint)})


def _signed_by(key: Ed25519PublicKey, checkpoint: Checkpoint) -> bool:
    try:
        key.verify(bytes.fromhex(checkpoint.signature), checkpoint.payload())
    except (InvalidSignature, ValueError):
        return False
    return True
