"""Decompressing what strangers send: a bomb is measured piece by piece, and never held."""

from __future__ import annotations

from typing import Any

IN_THREAD_BYTES = 16 * 1024
"""Compressed bytes from which on a thread inflates: as many may become a thousand times as large."""

_USUAL_RATIO = 32
"""Text and tensors are compressed less than this many times; bombs, up to a thousand times."""
_PIECE_BYTES = 2**16


def inflate(stream: Any, packed: bytes, limit: int) -> bytes | None:
    """What ``stream``, a ``zlib.decompressobj``, makes of ``packed``; None if that is more than ``limit`` bytes.

    What comes out larger than usual is counted before it is kept: memory that many threads take at once for nothing
    would stay with the process. Raises ``zlib.error``; ``stream.eof`` tells whether the end was there.
    """
    most = min(limit + 1, _USUAL_RATIO * len(packed) + 1)
    body: bytes = stream.decompress(packed, most)
    if len(body) < most:
        return body
    size = len(body) + _size_of_rest(stream.copy(), stream.unconsumed_tail, limit - len(body))
    if size > limit:
        return None
    rest: bytes = stream.decompress(stream.unconsumed_tail, limit + 1 - len(body))
    return body + rest


def _size_of_rest(stream: Any, packed: bytes, limit: int) -> int:
    """How many bytes are still to come, counted until they are more than ``limit``."""
    size = 0
    while size <= limit and (piece := stream.decompress(packed, _PIECE_BYTES)):
        size += len(piece)
        packed = stream.unconsumed_tail
    return size
