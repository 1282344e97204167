"""Header blocks: read with ``hpack``, once for all requests of a connection that send the same one; written plainly.

Nearly every call of a client has the same header block as the one before. A block that does not change the
compression table means the same until the table changes, so what was made of it is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import hpack
import hpack.exceptions

from gateway.http2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFault

Head = TypeVar("Head")
Fields = Sequence[tuple[bytes, bytes]]
_Table = tuple[object, int, int]
"""The newest entry of a compression table, their number, and the size that they may have."""

MAX_LIST_BYTES = 16 * 1024
"""Of the headers that are served, as clients are told."""
MAX_READ_BYTES = 64 * 1024
"""A larger list ends the connection. One in between is read, for the compression table's sake, and its call refused."""
_KEPT = 64
_KEPT_BYTES = 2048

logging.getLogger("hpack").setLevel(logging.WARNING)  # it would log keys


class HeaderReader(Generic[Head]):
    """The header blocks of one connection, in their order; ``make`` gets the fields of each new one."""

    def __init__(self, make: Callable[[Fields], Head]) -> None:
        self._make = make
        self._decoder = hpack.Decoder(max_header_list_size=MAX_READ_BYTES)
        self._kept: dict[bytes, Head] = {}
        self.keeps = False
        """Whether what was made of a block is kept: memory that not everybody who can connect may fill."""

    def read(self, block: bytes) -> Head:
        """What ``make`` made of the block. Raises :class:`ConnectionFault`."""
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        before = self._table()
        try:
            fields = [(field[0], field[1]) for field in self._decoder.decode(block, raw=True)]
        except hpack.exceptions.OversizedHeaderListError as error:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "the headers are too large") from error
        except (hpack.exceptions.HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(COMPRESSION_ERROR, "broken header compression") from error
        made = self._make(fields)
        if not _same(self._table(), before):
            self._kept.clear()
        elif self.keeps and len(block) <= _KEPT_BYTES:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[block] = made
        return made

    def _table(self) -> _Table:
        entries = self._decoder.header_table.dynamic_entries
        return (entries[0] if entries else None), len(entries), self._decoder.header_table_size


def _same(after: _Table, before: _Table) -> bool:
    """Whether no entry came or went in between: a new one would stand in front, an object of its own."""
    return after[0] is before[0] and after[1:] == before[1:]


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541, section 5.1; the bits in front are zero."""
    largest = (1 << bits) - 1
    if value < largest:
        return bytes((value,))
    value -= largest
    out = bytearray((largest,))
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_LENGTHS = [_integer(length, 7) for length in range(256)]
_names: dict[str, bytes] = {}


def write(fields: Iterable[tuple[str, str]]) -> bytes:
    """A block of literals that no table remembers (RFC 7541, section 6.2.2). Names are lower-case ASCII."""
    parts = []
    for name, value in fields:
        raw = value.encode("latin-1", "replace")
        length = len(raw)
        parts.append(_names.get(name) or _name(name))
        parts.append(_LENGTHS[length] if length < 256 else _integer(length, 7))
        parts.append(raw)
    return b"".join(parts)


def _name(name: str) -> bytes:
    raw = name.encode("ascii")
    made = b"\0" + _integer(len(raw), 7) + raw
    if len(_names) < 256:
        _names[name] = made
    return made
