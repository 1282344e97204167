"""What is counted in a picture's file, and where the picture ends."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from gateway.errors import Invalid
from gateway.tasks.containers import MAX_PARTS, MAX_SCANS, check_jpeg, check_png
from gateway.tasks.image import open_picture


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SCANS = b"\xff\xda\x00\x02" * 200
"""As random bytes may look like it; where they count, they are far too many."""
PLAIN, PROGRESSIVE = jpeg(), jpeg(progressive=True)


@pytest.mark.parametrize("picture", [PLAIN, PROGRESSIVE])
def test_a_film_behind_a_photo_is_no_part_of_it(picture: bytes) -> None:
    assert open_picture(picture + SCANS, 10**6).size == (256, 256)
    check_jpeg(picture + b"\0\0\0\x18ftypmp42" + SCANS)


@pytest.mark.parametrize("marker", [0xE1, 0xFE])
def test_nor_is_what_stands_within_a_segment(marker: int) -> None:
    """A thumbnail in the EXIF data has scans and an end of its own."""
    check_jpeg(PLAIN[:2] + segment(marker, SCANS) + PLAIN[2:])
    ended = PLAIN[:2] + segment(marker, b"\xff\xd9") + PLAIN[2:-2] + SCANS + b"\xff\xd9"
    with pytest.raises(Invalid, match="scans"):
        check_jpeg(ended)


def test_restarts_fillers_and_escapes_are_data() -> None:
    check_jpeg(PLAIN[:-2] + b"\xff\xd0\xff\x00\xff\xd7" * 10_000 + b"\xff\xff\xff\xd9" + SCANS)
    check_jpeg(jpeg(restart_marker_rows=1))


def test_scans_are_counted() -> None:
    scans = PROGRESSIVE.count(b"\xff\xda")
    begin = PROGRESSIVE.rindex(b"\xff\xda")
    more = PROGRESSIVE[begin:-2]
    check_jpeg(PROGRESSIVE[:-2] + more * (MAX_SCANS - scans) + PROGRESSIVE[-2:])
    with pytest.raises(Invalid, match=f"more than {MAX_SCANS} scans"):
        check_jpeg(PROGRESSIVE[:-2] + more * (MAX_SCANS - scans + 1) + PROGRESSIVE[-2:])


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xe1\xff\xff", b"\xff\xd8" + b"\xff" * 9, PLAIN[:-2]]
)
def test_what_ends_early_is_left_to_the_decoder(data: bytes) -> None:
    check_jpeg(data)


def test_small_parts_without_end() -> None:
    comments = segment(0xFE, b"") * MAX_PARTS
    for data in (PLAIN[:2] + comments + PLAIN[2:], PLAIN[:2] + b"\xff\x01" * MAX_PARTS + PLAIN[2:]):
        with pytest.raises(Invalid, match="parts"):
            open_picture(data, 10**6)
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND")
    with pytest.raises(Invalid, match="parts"):
        open_picture(signature + chunk(b"tEXt", b"a\0b") * MAX_PARTS + end, 10**6)
    check_png(signature + chunk(b"IDAT") * (MAX_PARTS - 1) + end + chunk(b"IDAT") * MAX_PARTS)
    check_png(signature + b"\xff\xff\xff\xffIDAT")
