"""The outbox: from journals to the database, every record once, whatever dies in between.

A segment is deleted after the transaction that holds its last record has committed; until then
its records are written again after a restart, and the second time changes nothing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import structlog
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from gateway.ledger.batches import Batch, BatchReader
from gateway.ledger.folders import JournalFolder
from gateway.ledger.frames import Damage
from gateway.ledger.journal import SUFFIX, Journal, Segment
from gateway.store.database import Store
from gateway.store.usage import NotFreshError, Settlement, UsageRecord, abandoned, open_records, write

log = structlog.get_logger(__name__)

DAMAGED = ".damaged"
"""Folder beside the journals for segments with damage in the middle, and for records no database takes."""
_BATCH = 4000
"""Frames in one transaction: large enough that most calls are in it from their begin to their settled cost."""
_DATA_ERRORS = ("22", "23")  # SQLSTATE classes: the data is at fault, not the database


class Flusher:
    """Writes this process's journal, and those of dead ones, into the database."""

    def __init__(
        self, store: Store, root: Path, gateway_id: str, estimate: Callable[[UsageRecord], Settlement]
    ) -> None:
        self.metered = 0
        """Ended records that this process has committed."""
        self.rejected = 0
        """Records that the database refused for their content; they are kept in ``DAMAGED``."""
        self.unknown = 0
        """Records of dead gateways without an end."""
        self.damaged = 0
        """Damaged stretches found in journals."""
        self._store = store
        self._root = root
        self._gateway_id = gateway_id
        self._estimate = estimate
        self._reader = BatchReader(gateway_id, _BATCH)
        self._segment: Segment | None = None
        self._offset = 0
        self._open: dict[str, UsageRecord] = {}
        """Records in the database that wait for their end or their cost."""

    def spooled_bytes(self, journal: Journal) -> int:
        """Bytes of the journal that are not in the database yet."""
        segments = journal.segments
        index = segments.index(self._segment) if self._segment in segments else 0
        return sum(segment.size for segment in segments[index:]) - self._offset

    async def flush(self, journal: Journal) -> None:
        """Write all that the journal holds now.

        Raises ``Unavailable`` while the database is away, ``OSError`` for a journal that cannot be read.
        """
        last, end = journal.segments[-1], journal.segments[-1].size
        while True:
            segment = self._segment
            if segment is None or segment not in journal.segments:
                segment = self._segment = journal.segments[0]
                self._offset = 0
            if segment.size > self._offset:
                await self._flush_segment(journal, segment)
            if segment is last and self._offset >= end:
                return
            if segment is not journal.segments[-1] and self._offset >= segment.size:
                following = journal.segments[journal.segments.index(segment) + 1]
                journal.discard(segment)
                self._segment, self._offset = following, 0

    async def _flush_segment(self, journal: Journal, segment: Segment) -> None:
        written = segment.size
        data = journal.read(segment, self._offset)
        async for batch in self._reader.batches(data, self._offset):
            await self._commit(batch)
            self._offset = batch.end
            self._report(segment.path, batch.damage)
        if self._offset < written:
            log.error("journal.truncated", segment=segment.path.name, offset=self._offset, written=written)
            self.damaged += 1
            self._offset = written

    async def adopt(self, folder: JournalFolder) -> None:
        """Replay the journal of a dead gateway, settle what it left open, and remove it.

        Raises what :meth:`flush` raises; the folder is then left for another attempt.
        """
        reader = BatchReader(folder.gateway_id, _BATCH)
        paths = sorted(folder.path.glob(f"*{SUFFIX}"))
        for path in paths:
            async for batch in reader.batches(await asyncio.to_thread(path.read_bytes), 0):
                await self._commit(batch, mine=False)
                self._report(path, batch.damage)
        await self.close_open(folder.gateway_id)
        folder.remove()
        log.info("journal.replayed", gateway=folder.gateway_id, segments=len(paths))

    async def close_open(self, gateway_id: str) -> None:
        """End what a gateway that is no more left open: ``unknown`` calls, costs never measured."""
        while True:
            async with self._store.write() as connection:
                records = await open_records(connection, gateway_id, _BATCH)
                ended, settlements = self._closed(records)
                await write(connection, ended, settlements)
            self._count_unknown(ended)
            if len(records) < _BATCH:
                return

    async def reap(self, before: int) -> None:
        """Make records ``unknown`` that were reserved before the instant ``before`` (µs since the epoch).

        That is for gateways whose journal is lost with its disk; should it come back after all, the
        end found in it replaces ``unknown``.
        """
        while True:
            async with self._store.write() as connection:
                records = [r for r in await abandoned(connection, before, _BATCH) if r.gateway_id != self._gateway_id]
                ended, _ = self._closed(records)
                await write(connection, ended)
            self._count_unknown(ended)
            if len(records) < _BATCH:
                return

    def _closed(self, records: Iterable[UsageRecord]) -> tuple[list[UsageRecord], list[Settlement]]:
        ended, settlements = [], []
        for record in records:
            if record.state == "reserved":
                ended.append(msgspec.structs.replace(record, state="unknown", settled=True, error="gateway_lost"))
            else:
                settlements.append(self._estimate(record))
        return ended, settlements

    def _count_unknown(self, ended: Sequence[UsageRecord]) -> None:
        self.unknown += len(ended)
        if ended:
            log.warning("ledger.unknown", records=len(ended), first=ended[0].usage_id)

    # --- one transaction

    async def _commit(self, batch: Batch, *, mine: bool = True) -> None:
        records: list[UsageRecord] = []
        known: list[UsageRecord] = []
        for record in batch.records.values():
            (known if record.usage_id in self._open else records).append(record)
        settlements = []
        for settlement in batch.settlements.values():
            record_in_database = self._open.get(settlement.usage_id)
            if record_in_database is None:
                settlements.append(settlement)
            else:
                settled = msgspec.structs.replace(record_in_database)
                settlement.apply(settled)
                known.append(settled)
        await self._write(records, known, settlements)
        for record in (*records, *known):
            self._open.pop(record.usage_id, None)
            if mine and not record.settled:
                self._open[record.usage_id] = record

    async def _write(
        self, records: Sequence[UsageRecord], known: Sequence[UsageRecord], settlements: Sequence[Settlement]
    ) -> None:
        try:
            try:
                async with self._store.write() as connection:
                    new = await write(connection, records, fresh=True)
                    old = await write(connection, known, settlements)
                self.metered += new.ended + old.ended
            except NotFreshError:
                async with self._store.write() as connection:
                    written = await write(connection, [*records, *known], settlements)
                self.metered += written.ended
        except DBAPIError as error:
            if not _is_data_error(error):
                raise
            await self._write_apart([*records, *known, *settlements])

    async def _write_apart(self, changes: Sequence[UsageRecord | Settlement]) -> None:
        """Halve a batch that the database refuses, so that one bad record holds up no other."""
        half = (len(changes) + 1) // 2
        for part in (changes[:half], changes[half:]):
            error = await self._try(part) if part else None
            if error is not None and len(part) == 1:
                self._reject(part[0], error)
            elif error is not None:
                await self._write_apart(part)

    async def _try(self, changes: Sequence[UsageRecord | Settlement]) -> DBAPIError | None:
        """Write a part of a batch; returns the error if the data is at fault."""
        records = [change for change in changes if isinstance(change, UsageRecord)]
        settlements = [change for change in changes if isinstance(change, Settlement)]
        try:
            async with self._store.write() as connection:
                written = await write(connection, records, settlements)
        except DBAPIError as error:
            if _is_data_error(error):
                return error
            raise
        self.metered += written.ended
        return None

    def _reject(self, change: UsageRecord | Settlement, error: DBAPIError) -> None:
        folder = self._root / DAMAGED
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / "rejected.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(msgspec.structs.asdict(change)) + b"\n")
        self.rejected += 1  # not before it is kept: until then it is offered to the database again
        log.error("ledger.rejected", usage_id=change.usage_id, error=type(error.orig).__name__)

    def _report(self, path: Path, damage: Sequence[Damage]) -> None:
        for stretch in damage:
            self.damaged += 1
            log.error(
                "journal.torn" if stretch.torn else "journal.corrupt",
                segment=f"{path.parent.name}/{path.name}",
                offset=stretch.start,
                bytes=stretch.end - stretch.start,
            )
        if any(not stretch.torn for stretch in damage):  # keep it for whoever wants to look
            folder = self._root / DAMAGED
            folder.mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(path, folder / f"{path.parent.name}-{path.name}")


def _is_data_error(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, IntegrityError | DataError) or state[:2] in _DATA_ERRORS
