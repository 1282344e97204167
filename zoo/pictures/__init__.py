"""Pictures for golden checks: photographs that lie in this folder, and digits that are drawn."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent

STROKES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "0": (((10, 2), (5, 6), (4, 14), (6, 21), (10, 24), (14, 21), (16, 14), (15, 6), (10, 2)),),
    "1": (((7, 6), (11, 2), (11, 24)),),
    "2": (((4, 7), (7, 3), (12, 3), (15, 7), (13, 13), (8, 18), (4, 24), (16, 24)),),
    "3": (((4, 4), (10, 2), (15, 6), (12, 11), (8, 12), (13, 14), (16, 19), (11, 24), (4, 22)),),
    "4": (((12, 24), (12, 2), (3, 16), (17, 16)),),
    "5": (((15, 2), (6, 2), (5, 11), (11, 10), (16, 15), (14, 22), (8, 24), (4, 21)),),
    "7": (((4, 3), (16, 3), (9, 24)),),
}
"""Digits as a pen writes them, in a box 20 wide and 26 high."""


def load_picture(reference: str) -> bytes:
    """An image file's bytes: ``picture:<name>`` a photograph (JPEG), ``digit:<0 to 7>`` a drawn one (PNG).

    Raises ``ValueError`` for a reference that is neither.
    """
    kind, _, name = reference.partition(":")
    if kind == "digit" and name in STROKES:
        return draw_digit(name)
    path = FOLDER / f"{name}.jpg"
    if kind == "picture" and name.isidentifier() and path.is_file():
        return path.read_bytes()
    raise ValueError(f"{reference!r} is no picture; there are picture:<{_names()}> and digit:<{', '.join(STROKES)}>")


def draw_digit(digit: str, *, scale: int = 8, margin: int = 48) -> bytes:
    """A PNG of ``digit`` in dark ink on white paper, as a person would photograph or draw it."""
    image = Image.new("L", (20 * scale + 2 * margin, 26 * scale + 2 * margin), 255)
    pen = ImageDraw.Draw(image)
    radius = scale * 1.3
    for stroke in STROKES[digit]:
        points = [(margin + x * scale, margin + y * scale) for x, y in stroke]
        pen.line(points, fill=20, width=int(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=20)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _names() -> str:
    return ", ".join(sorted(path.stem for path in FOLDER.glob("*.jpg")))
