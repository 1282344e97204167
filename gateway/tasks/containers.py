"""The parts that a picture's file is made of, walked before anything is decoded.

A decoder looks at every part: a JPEG's scan takes a look at every pixel, and any part of PNG or JPEG some
microseconds, in four bytes of the file. What stands behind the end of a picture is no part of it (a phone's
"motion photo" has its film there). Sources: ITU-T T.81 B.1, PNG specification 5.3.
"""

from __future__ import annotations

import re

from gateway.errors import Invalid

MAX_SCANS = 50
"""Of a JPEG. A progressive one has about ten."""
MAX_PARTS = 50_000
"""Segments of a JPEG, chunks of a PNG."""

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Within the data of a scan 0xFF is followed by 0, or by the number of a restart."""
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _TEMPORARY = 0xD8, 0xD9, 0xDA, 0x01
_WITHOUT_LENGTH = frozenset({_START_OF_IMAGE, _TEMPORARY})


def check_jpeg(data: bytes) -> None:
    """Raise ``Invalid`` for more than ``MAX_SCANS`` scans or ``MAX_PARTS`` segments up to the end of the picture."""
    offset, scans = 2, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, offset)
        if found is None:
            return
        offset, marker = found.end(), found[1][0]
        if marker == _END_OF_IMAGE:
            return
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise Invalid(f"the picture has more than {MAX_SCANS} scans", param="inputs")
        offset += max(2, int.from_bytes(data[offset : offset + 2], "big"))
    raise _too_many()


def check_png(data: bytes) -> None:
    """Raise ``Invalid`` for more than ``MAX_PARTS`` chunks up to the end of the picture."""
    offset = 8
    for _ in range(MAX_PARTS):
        if offset >= len(data) or data[offset + 4 : offset + 8] == b"IEND":
            return
        offset += 12 + int.from_bytes(data[offset : offset + 4], "big")
    raise _too_many()


def _too_many() -> Invalid:
    return Invalid(f"the picture has more than {MAX_PARTS} parts", param="inputs")
