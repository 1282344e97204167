"""What frames of a journal come down to: the newest version of each record, and costs to settle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import structlog

from gateway.ledger import frames
from gateway.store.usage import Settlement, UsageRecord, newer

_BREATH = 200
"""Frames decoded in one go: well below a millisecond."""

log = structlog.get_logger(__name__)


class Batch:
    """Up to ``limit`` frames, merged; ``end`` is the offset behind the last of them."""

    def __init__(self, gateway_id: str) -> None:
        self.records: dict[str, UsageRecord] = {}
        self.settlements: dict[str, Settlement] = {}
        """Of records that are not in the batch."""
        self.frames = 0
        self.end = 0
        self.damage: list[frames.Damage] = []
        self._gateway_id = gateway_id

    def add(self, record: UsageRecord) -> None:
        """Take a version of a record; an older one of the same call gives way."""
        existing = self.records.get(record.usage_id)
        if existing is None or newer(existing, record):
            record.gateway_id = self._gateway_id
            self.records[record.usage_id] = record

    def settle(self, settlement: Settlement) -> None:
        """Take the cost of a record."""
        record = self.records.get(settlement.usage_id)
        if record is None:
            self.settlements[settlement.usage_id] = settlement
        else:
            settlement.apply(record)


class BatchReader:
    """Cuts the frames of a segment into batches."""

    def __init__(self, gateway_id: str, limit: int) -> None:
        self._gateway_id = gateway_id
        self._limit = limit
        self._record = msgspec.msgpack.Decoder(UsageRecord)
        self._settlements = msgspec.msgpack.Decoder(list[Settlement])

    async def batches(self, data: bytes, offset: int) -> AsyncIterator[Batch]:
        """Batches of the frames in ``data``, which was read from ``offset`` of its segment on.

        Lets the event loop go on every few hundred frames.
        """
        batch = self._new(offset)
        for found in frames.scan(data):
            if batch.frames % _BREATH == 0:
                await asyncio.sleep(0)
            batch.end = offset + found.end
            if isinstance(found, frames.Damage):
                batch.damage.append(frames.Damage(offset + found.start, offset + found.end, found.torn))
                continue
            try:
                self._decode(batch, found)
            except msgspec.DecodeError as error:  # intact, but another program's
                log.error("journal.unreadable", gateway=self._gateway_id, error=str(error))
                batch.damage.append(frames.Damage(batch.end - len(found.payload), batch.end, torn=False))
            batch.frames += 1
            if batch.frames == self._limit:
                yield batch
                batch = self._new(batch.end)
        if batch.frames or batch.damage:
            yield batch

    def _new(self, offset: int) -> Batch:
        batch = Batch(self._gateway_id)
        batch.end = offset
        return batch

    def _decode(self, batch: Batch, frame: frames.Frame) -> None:
        if frame.kind == frames.RECORD:
            batch.add(self._record.decode(frame.payload))
        elif frame.kind == frames.SETTLEMENTS:
            for settlement in self._settlements.decode(frame.payload):
                batch.settle(settlement)
        else:
            raise msgspec.DecodeError(f"frames of kind {frame.kind} are not known")
