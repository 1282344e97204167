"""Pictures that a visitor brings: looked at before they are shown or sent."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 50_000_000
"""The gateway's own default limit (``TIDEGATE_MAX_IMAGE_PIXELS``)."""

EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class Refused(Exception):
    """A file that is not sent; the message is for the visitor."""


@dataclass(slots=True, frozen=True)
class Picture:
    """A picture that may be shown and sent."""

    name: str
    data: bytes
    media_type: str
    width: int
    height: int


def media_type(data: bytes) -> str | None:
    """The media type that the first bytes tell, or None for anything but JPEG, PNG and WebP."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def inspect(name: str, data: bytes) -> Picture:
    """Check size, magic bytes and the dimensions in the header; nothing is decoded.

    Raises :class:`Refused`.
    """
    if not data:
        raise Refused(f"{name} is empty.")
    if len(data) > MAX_BYTES:
        raise Refused(f"{name} has {len(data) / 2**20:.1f} MB; the limit is {MAX_BYTES // 2**20} MB.")
    kind = media_type(data)
    if kind is None:
        raise Refused(f"{name} is not a JPEG, PNG or WebP picture.")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            width, height = image.size
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise Refused(f"{name} cannot be read as a picture.") from error
    if width * height > MAX_PIXELS:
        raise Refused(f"{name} has {width} × {height} pixels; the limit is {MAX_PIXELS // 10**6} million.")
    return Picture(name, data, kind, width, height)
