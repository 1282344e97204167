"""Hostile pictures, made by small code: what they claim to be costs far more than what they are."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def plain(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """A good picture."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        parts.append(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return b"".join(parts)


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    """A PNG's IHDR."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def huge_png(side: int) -> bytes:
    """The header of ``side`` × ``side`` pixels and next to nothing behind it."""
    return png(header(side, side), (b"IDAT", zlib.compress(b"\x00" * 1024)), (b"IEND", b""))


def inflating_png(side: int) -> bytes:
    """One whose data inflates to far more than its small header says."""
    data = zlib.compress(b"\x00" * (64 * 2**20), 9)
    return png(header(side, side), (b"IDAT", data), (b"IEND", b""))


def inflating_text_png() -> bytes:
    """A small one with a compressed text of 256 MiB."""
    text = b"Comment\x00\x00" + zlib.compress(b"a" * (256 * 2**20), 9)
    good = (b"IDAT", zlib.compress(b"\x00" * (64 * (64 * 3 + 1))))
    return png(header(64, 64), (b"zTXt", text), good, (b"IEND", b""))


def many_chunks_png() -> bytes:
    """A hundred thousand empty chunks."""
    return png(header(64, 64), *[(b"tEXt", b"a\x00b")] * 100_000, (b"IEND", b""))


def huge_jpeg() -> bytes:
    """The header of 65,500 × 65,500 pixels on a small picture's data."""
    data = bytearray(plain("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def many_scans_jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG of ``side`` × ``side`` whose last scan comes ``scans`` times more, in 36 bytes each."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 200).save(buffer, "JPEG", progressive=True, optimize=True)
    data = buffer.getvalue()
    begin, end = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")), len(data) - 2
    return data[:end] + data[begin:end] * scans + data[end:]


def motion_photo() -> bytes:
    """A photo with its film behind it, in which the beginning of a scan seems to stand again and again."""
    return plain("JPEG") + b"\x00\x00\x00\x18ftypmp42" + b"\xff\xda\x00\x08" * 1_000


def largest_png() -> bytes:
    """50 million transparent pixels in 190 KB."""
    buffer = io.BytesIO()
    Image.new("RGBA", (7_071, 7_071)).save(buffer, "PNG")
    return buffer.getvalue()


def huge_webp() -> bytes:
    """A lossless WebP's header of 16,384 × 16,384 pixels."""
    bits = (16383) | (16383 << 14)
    frame = b"\x2f" + struct.pack("<I", bits) + b"\x00" * 32
    body = b"WEBP" + b"VP8L" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif(frames: int) -> bytes:
    """An animation of so many frames of one pixel."""
    start = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    return start + b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00" * frames + b"\x3b"


def apng(frames: int) -> bytes:
    """An animated PNG of so many frames."""
    row = zlib.compress(b"\x00" * (8 * (8 * 3 + 1)))
    chunks: list[tuple[bytes, bytes]] = [header(8, 8), (b"acTL", struct.pack(">II", frames, 0))]
    for number in range(frames):
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", 2 * number, 8, 8, 0, 0, 1, 10, 0, 0)))
        chunks.append((b"IDAT", row) if number == 0 else (b"fdAT", struct.pack(">I", 2 * number - 1) + row))
    return png(*chunks, (b"IEND", b""))


def webp(frames: int) -> bytes:
    """An animated WebP of so many frames."""
    pictures = [Image.new("RGB", (8, 8), (number % 256, number // 256, 0)) for number in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=10, lossless=True)
    return buffer.getvalue()


def exif_bomb(kind: str) -> bytes:
    """A good picture whose EXIF has offsets in circles and counts of 2³² − 1."""
    entries = b"".join(
        struct.pack("<HHII", tag, 5, 2**32 - 1, 8) for tag in (0x0112, 0x8769, 0x8825, 0xA005, *range(1, 500))
    )
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 504) + entries + struct.pack("<I", 8)
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, kind, exif=exif)
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50000 50000\n%%EndComments\n(/etc/passwd) (r) file showpage\n"
PDF = b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/URI/URI(http://169.254.169.254/)>>>>endobj\n%%EOF\n"
SVG = (
    b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://169.254.169.254/"/><text>&a;</text></svg>'
)
FITS = b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b"END".ljust(2720)
DISGUISED: dict[str, bytes] = {
    "eps": EPS,
    "pdf": PDF,
    "svg": SVG,
    "fits": FITS,
    "html": b"<html><script>1</script></html>",
    "gif": gif(1),
    "gif of 10,000 frames": gif(10_000),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50000, 50000, 1, 24, 0, 0, 0, 0, 0, 0),
    "tiff": b"II*\x00" + struct.pack("<IHHHII", 8, 1, 0x0100, 4, 1, 50000) + bytes(4),
    "ico": b"\x00\x00\x01\x00\x01\x00" + bytes(16),
    "psd": b"8BPS\x00\x01" + bytes(20),
    "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64),
    "elf": b"\x7fELF" + bytes(64),
    "zip": b"PK\x03\x04" + bytes(64),
    "text": b"just a text",
    "zeros": bytes(4096),
    "one byte": b"\x89",
}
"""Not JPEG, PNG or WebP, whatever their Content-Type says."""
