"""Frames of the journal: how records lie in a file, and how they are found again after damage.

A frame is a header of 12 bytes (little-endian: magic, kind, length of the payload, CRC-32)
and a MessagePack payload. The checksum covers kind, length and payload.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

RECORD = 1
"""Payload: one :class:`~gateway.store.usage.UsageRecord`."""
SETTLEMENTS = 2
"""Payload: an array of :class:`~gateway.store.usage.Settlement`."""

MAGIC = b"\xd7tg"
HEADER = struct.Struct("<3sBII")
MAX_PAYLOAD = 2**20


class Frame(NamedTuple):
    """An intact frame; ``end`` is the offset behind it."""

    kind: int
    payload: memoryview
    end: int


class Damage(NamedTuple):
    """Bytes from ``start`` to ``end`` that are no frame."""

    start: int
    end: int
    torn: bool
    """True: nothing intact follows, as a write that was cut short leaves it. False: damage in the middle."""


def seal(buffer: bytearray, kind: int) -> None:
    """Fill in the header in front of a payload that begins at ``HEADER.size``."""
    length = len(buffer) - HEADER.size
    HEADER.pack_into(buffer, 0, MAGIC, kind, length, zlib.crc32(memoryview(buffer)[HEADER.size :], length ^ kind << 24))


def scan(data: bytes | memoryview, start: int = 0) -> Iterator[Frame | Damage]:
    """Every frame of ``data`` from ``start`` on, in order, and the damage between them."""
    view = memoryview(data)
    position = start
    while position < len(view):
        frame = _frame_at(view, position)
        if frame is None:
            after = _next_frame(data, view, position + 1)
            yield Damage(position, len(view) if after is None else after, torn=after is None)
            if after is None:
                return
            position = after
        else:
            yield frame
            position = frame.end


def _frame_at(view: memoryview, position: int) -> Frame | None:
    begin = position + HEADER.size
    if begin > len(view):
        return None
    magic, kind, length, checksum = HEADER.unpack_from(view, position)
    if magic != MAGIC or length > MAX_PAYLOAD or begin + length > len(view):
        return None
    payload = view[begin : begin + length]
    if zlib.crc32(payload, length ^ kind << 24) != checksum:
        return None
    return Frame(kind, payload, begin + length)


def _next_frame(data: bytes | memoryview, view: memoryview, position: int) -> int | None:
    raw = bytes(data)
    while (position := raw.find(MAGIC, position)) >= 0:
        if _frame_at(view, position) is not None:
            return position
        position += 1
    return None
