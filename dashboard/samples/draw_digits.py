"""Draws ``digit-0.png`` … ``digit-9.png``: pen strokes on paper, made by this script and nothing else.

Run ``python -m dashboard.samples.draw_digits`` to make them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

Point = tuple[float, float]

SIZE = 280
SCALE = 4
"""Drawn this many times larger and reduced, which smooths the edges."""
PEN = 0.085
"""Width of the stroke, in widths of the picture."""
PAPER, INK = (250, 248, 242), (28, 36, 64)


def arc(centre: Point, radii: Point, start: float, end: float, steps: int = 48) -> list[Point]:
    """Points of an ellipse's arc; degrees clockwise from three o'clock, units of the picture's width."""
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(centre[0] + radii[0] * math.cos(angle), centre[1] + radii[1] * math.sin(angle)) for angle in angles]


STROKES: dict[int, list[list[Point]]] = {
    0: [arc((0.50, 0.50), (0.19, 0.29), -80, 285)],
    1: [[(0.40, 0.31), (0.53, 0.20), (0.51, 0.80)]],
    2: [[*arc((0.49, 0.36), (0.18, 0.16), 190, 395), (0.34, 0.77), (0.70, 0.75)]],
    3: [arc((0.47, 0.35), (0.17, 0.15), 200, 440), arc((0.46, 0.64), (0.20, 0.16), -85, 150)],
    4: [[(0.46, 0.20), (0.30, 0.57), (0.70, 0.55)], [(0.61, 0.36), (0.57, 0.82)]],
    5: [[(0.66, 0.22), (0.40, 0.23), (0.37, 0.47), *arc((0.47, 0.61), (0.20, 0.18), 235, 505)]],
    6: [[(0.58, 0.19), (0.44, 0.34), *arc((0.49, 0.62), (0.17, 0.18), 200, 560)]],
    7: [[(0.32, 0.24), (0.68, 0.22), (0.46, 0.81)]],
    8: [arc((0.50, 0.35), (0.14, 0.14), 90, 450), arc((0.50, 0.64), (0.17, 0.15), -90, 270)],
    9: [[*arc((0.49, 0.37), (0.16, 0.16), 0, -360), (0.60, 0.82)]],
}


def draw(strokes: Iterable[list[Point]]) -> Image.Image:
    """One picture, ``SIZE`` × ``SIZE`` pixels, RGB."""
    side = SIZE * SCALE
    image = Image.new("RGB", (side, side), PAPER)
    pen = ImageDraw.Draw(image)
    radius = PEN * side / 2
    for stroke in strokes:
        points = [(x * side, y * side) for x, y in stroke]
        pen.line(points, fill=INK, width=round(2 * radius), joint="curve")
        for x, y in points:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=INK)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    """Write all ten beside this script."""
    for digit, strokes in STROKES.items():
        draw(strokes).quantize(32).save(Path(__file__).with_name(f"digit-{digit}.png"), optimize=True)


if __name__ == "__main__":
    main()
