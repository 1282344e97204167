"""The audit: every change to keys, budgets, limits and models, and every refusal, as a hash chain.

A change and its record are one transaction: no audit, no change. Each transaction also signs a
checkpoint (Ed25519) of the newest record and, once committed, appends it to the anchor file beside
the key: cutting, rewriting or restoring the database alone shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.access.attendance import Attendance, Silence
from gateway.access.chain import (
    GENESIS,
    AuditRecord,
    ChainVerifier,
    Checkpoint,
    Finding,
    canonical,
    checkpoint_from,
    parse_anchor,
    record_from,
)
from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.files import append_private, create_private, private_directory
from gateway.store.tables import audit_checkpoints, audit_records

log = structlog.get_logger(__name__)

_APPEND_LOCK = 0x7469_6465_6175_6469  # "tideaudi": one writer of the chain over all gateways
_PAGE = 1000


class AuditError(Exception):
    """The audit's key cannot be read or made."""


@dataclass(slots=True, frozen=True)
class Actor:
    """Who asks for an operation: a key's id, ``cli`` or ``system``; and from where."""

    name: str
    request_id: str = ""
    address: str = ""


SYSTEM = Actor("system")


@dataclass(slots=True)
class Operation:
    """A change under way; whoever makes it names the object and adds details (never a secret)."""

    connection: AsyncConnection
    object: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Verification:
    """What ``verify`` found."""

    records: int
    checkpoints: int
    anchored: int
    """Checkpoints in the anchor file; 0 says that nothing outside the database was compared."""
    last_hash: str
    finding: Finding | None
    silences: tuple[Silence, ...] = ()
    """Gateways that fell silent: the chain may be whole all the same."""

    @property
    def whole(self) -> bool:
        """Whether nothing was tampered with, as far as records and checkpoints tell."""
        return self.finding is None


class Audit:
    """The one writer of audit records in this process."""

    def __init__(self, store: Store, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """Read the signing key, or make it once. Raises :class:`AuditError`."""
        self._store = store
        self._clock = clock
        self._key = _load_key(settings)
        self.anchor_file = settings.data_dir / "audit.anchor"
        _prepare(self.anchor_file)
        self._unanchored: list[Checkpoint] = []
        self._verifying = asyncio.Lock()
        self.appended = 0
        """Records written by this process."""

    @property
    def unanchored(self) -> int:
        """Signed checkpoints that the anchor file lacks: it could not be written."""
        return len(self._unanchored)

    @asynccontextmanager
    async def operation(self, actor: Actor, action: str, object_: str = "") -> AsyncIterator[Operation]:
        """Run a change and its record in one transaction.

        An exception in the block undoes both. Raises :class:`~gateway.errors.Unavailable` when the
        record cannot be written, before anything was changed.
        """
        await self._anchor()
        async with self._store.write() as connection:
            await self._store.lock(connection, _APPEND_LOCK)
            operation = Operation(connection, object_)
            yield operation
            checkpoint = await self._append(operation, actor, action, "ok")
        await self._seal(checkpoint)

    async def record(
        self, actor: Actor, action: str, object_: str, *, result: str = "ok", details: dict[str, Any] | None = None
    ) -> None:
        """Write a record that stands alone. Raises :class:`~gateway.errors.Unavailable`."""
        await self._anchor()
        async with self._store.write() as connection:
            await self._store.lock(connection, _APPEND_LOCK)
            operation = Operation(connection, object_, details or {})
            checkpoint = await self._append(operation, actor, action, result)
        await self._seal(checkpoint)

    async def records(self, *, after: int = 0, limit: int = 100, newest_first: bool = False) -> list[AuditRecord]:
        """Return up to ``limit`` records: those after sequence ``after``, or the newest ones."""
        query = sa.select(audit_records).limit(limit)
        if newest_first:
            query = query.order_by(audit_records.c.sequence.desc())
            if after:
                query = query.where(audit_records.c.sequence < after)
        else:
            query = query.where(audit_records.c.sequence > after).order_by(audit_records.c.sequence)
        async with self._store.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [record_from(dict(row)) for row in rows]

    async def verify(self) -> Verification:
        """Walk the whole chain and name the first bad record. Raises ``Unavailable``.

        A page at a time, in a thread, and for one caller after the other: everything else goes on meanwhile.
        """
        async with self._verifying:
            with contextlib.suppress(Unavailable):
                await self._anchor()
            # The anchor is read first and the records last: what is written meanwhile is only ever newer.
            anchored = await asyncio.to_thread(self._read_anchor)
            if isinstance(anchored, Finding):
                return Verification(0, 0, 0, GENESIS, anchored)
            verifier, attendance = ChainVerifier(self._key.public_key()), Attendance()
            last = -(2**63)
            while checkpoints := await self._checkpoints(after=last):
                await asyncio.to_thread(verifier.feed_checkpoints, checkpoints)
                last = checkpoints[-1].number
            await asyncio.to_thread(verifier.feed_anchored, anchored)
            while page := await self.records(after=verifier.records, limit=_PAGE):
                before = verifier.records
                await asyncio.to_thread(_feed, page, verifier, attendance)
                if verifier.records <= before:
                    break
            return Verification(
                verifier.records,
                verifier.checkpoints,
                len(anchored),
                verifier.last_hash,
                verifier.finish(),
                attendance.finish(int(self._clock() * 1_000_000)),
            )

    async def _checkpoints(self, *, after: int) -> list[Checkpoint]:
        table = audit_checkpoints
        query = sa.select(table).where(table.c.number > after).order_by(table.c.number).limit(_PAGE)
        async with self._store.read() as connection:
            return [checkpoint_from(dict(row)) for row in (await connection.execute(query)).mappings()]

    async def _append(self, operation: Operation, actor: Actor, action: str, result: str) -> Checkpoint:
        connection = operation.connection
        last = (
            await connection.execute(
                sa.select(audit_records.c.sequence, audit_records.c.hash)
                .order_by(audit_records.c.sequence.desc())
                .limit(1)
            )
        ).first()
        now = int(self._clock() * 1_000_000)
        record = AuditRecord(
            sequence=(last.sequence if last else 0) + 1,
            at=now,
            actor=actor.name[:128],
            action=action,
            object=operation.object[:255],
            result=result,
            request_id=actor.request_id[:128],
            address=actor.address[:64],
            details=canonical(operation.details),
            previous_hash=last.hash if last else GENESIS,
        )
        record = replace(record, hash=record.computed_hash())
        await connection.execute(sa.insert(audit_records).values(**asdict(record)))
        return await self._checkpoint(connection, record)

    async def _checkpoint(self, connection: AsyncConnection, record: AuditRecord) -> Checkpoint:
        last = (
            await connection.execute(
                sa.select(audit_checkpoints.c.number, audit_checkpoints.c.signature)
                .order_by(audit_checkpoints.c.number.desc())
                .limit(1)
            )
        ).first()
        checkpoint = Checkpoint(
            number=(last.number if last else 0) + 1,
            sequence=record.sequence,
            hash=record.hash,
            at=record.at,
            previous_signature=last.signature if last else GENESIS,
        )
        checkpoint = replace(checkpoint, signature=self._key.sign(checkpoint.payload()).hex())
        await connection.execute(sa.insert(audit_checkpoints).values(**asdict(checkpoint)))
        return checkpoint

    async def _seal(self, checkpoint: Checkpoint) -> None:
        self.appended += 1
        self._unanchored.append(checkpoint)
        try:
            await self._anchor()
        except Unavailable as error:
            # The change is committed and signed in the store; the next one is refused until the
            # anchor can be written again.
            log.error("audit.anchor_failed", error=str(error.__cause__))

    async def _anchor(self) -> None:
        """Write what the anchor file lacks. Raises ``Unavailable``."""
        while self._unanchored:
            pending, self._unanchored = self._unanchored, []
            try:
                await asyncio.to_thread(append_private, self.anchor_file, b"".join(item.line() for item in pending))
            except OSError as error:
                self._unanchored = pending + self._unanchored
                raise Unavailable("The audit cannot be written; nothing was changed.", retry_after_s=5.0) from error

    def _read_anchor(self) -> list[Checkpoint] | Finding:
        if not self.anchor_file.exists():
            return []
        with self.anchor_file.open("rb") as lines:
            return parse_anchor(lines)


def _feed(page: list[AuditRecord], verifier: ChainVerifier, attendance: Attendance) -> None:
    for record in page:
        verifier.feed(record)
        attendance.feed(record)


def _prepare(anchor: Path) -> None:
    """Make the folder; cut off a last line that a power cut left half-written; the store has its checkpoint."""
    try:
        private_directory(anchor.parent)
        content = anchor.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(anchor, content.rfind(b"\n") + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise AuditError(f"the audit anchor {anchor}: {error.strerror}") from error


def _load_key(settings: Settings) -> Ed25519PrivateKey:
    path: Path = settings.audit_key_file or settings.data_dir / "audit.key"
    try:
        if not path.exists():
            private_directory(path.parent)
            create_private(path, Ed25519PrivateKey.generate().private_bytes_raw().hex().encode() + b"\n")
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except OSError as error:
        raise AuditError(f"the audit key {path}: {error.strerror}") from error
    except ValueError as error:
        raise AuditError(f"the audit key {path} is not 64 hexadecimal digits") from error
