"""Handwritten digits as the MNIST data set has them: light strokes on black, fitted and centred.

"The original black and white images were size normalised to fit in a 20x20 box while preserving
their aspect ratio […] the images were centered in a 28x28 image by computing the center of mass of
the pixels" (LeCun, Cortes, Burges: The MNIST database).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway.errors import Invalid

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

FAINTEST = 24
"""Grey levels between paper and stroke below which there is no stroke."""
LARGEST = 256
"""Pixels a side that are looked at; larger pictures are averaged down first."""
_EDGE = 0.9
"""Where the edge of a picture begins, from its middle (0) to its border (1)."""
_FITS = 4
_GRAIN = 6.0
"""Grey levels that paper may differ from its surface."""
_RIDGE = 0.005


def normalise_strokes(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Grey ``image`` as uint8 ``size`` (height, width). A picture on a dark ground that already has
    ``size`` is taken as it is. Raises ``Invalid`` if there is no stroke.
    """
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    grey = np.asarray(image.convert("L"))
    edge = np.concatenate((grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    dark_ground = bool(np.median(edge) < 128)
    if dark_ground and grey.shape == size:
        return grey
    ink = _ink(grey, dark_ground)
    strokes = ink > _otsu(ink)
    rows, columns = np.flatnonzero(strokes.any(axis=1)), np.flatnonzero(strokes.any(axis=0))
    ink[~_around(strokes)] = 0
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return _centred(_fitted(Image.fromarray(ink), box, size), size)


def _ink(grey: Pixels, dark_ground: bool) -> Pixels:
    """How far each pixel is from the ground, stretched to 0 … 255."""
    away = grey - _ground(grey)
    if not dark_ground:
        away = -away
    peak = float(away.max())
    if peak < FAINTEST:
        raise Invalid("there is no stroke in the picture", param="inputs")
    stretched: Pixels = (away.clip(0) * 255.0 / peak).astype(np.uint8)
    return stretched


def _ground(grey: Pixels) -> Floats:
    """The paper's brightness at every pixel: light falls unevenly on it, so it is a quadratic surface
    through the picture's edges, fitted again and again without the pixels that lie off it (strokes).
    """
    height, width = grey.shape
    rows, columns = np.linspace(-1.0, 1.0, height), np.linspace(-1.0, 1.0, width)
    y, x = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    basis = np.stack((np.ones_like(x), x, y, x * y, x * x, y * y), axis=1)
    on_edge = np.maximum(abs(x), abs(y)) >= _EDGE
    edge, samples = basis[on_edge], grey.ravel()[on_edge].astype(np.float64)
    level = np.median(samples)
    surface = np.array([level, 0.0, 0.0, 0.0, 0.0, 0.0])
    for _ in range(_FITS):
        off = abs(samples - edge @ surface)
        kept = off <= 3.0 * 1.4826 * np.median(off) + _GRAIN
        near, shade = edge[kept], samples[kept] - level
        # A little ridge: edges that strokes cover in part must not bend the surface between them.
        pull = np.diag([0.0, *[_RIDGE * len(near)] * 5])
        surface = np.linalg.solve(near.T @ near + pull, near.T @ shade)
        surface[0] += level
    return np.asarray((basis @ surface).reshape(height, width))


def _otsu(values: Pixels) -> int:
    """The grey level that parts ``values`` best in two (Otsu 1979)."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    sums = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / below[-1] - sums) ** 2 / (below * above)
    return int(np.nanargmax(np.where(below * above > 0, between, -1.0)))


def _around(strokes: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The strokes and the pixels next to them: the soft edge belongs to a stroke, the paper's grain does not."""
    padded = np.pad(strokes, 1)
    height, width = strokes.shape
    near = np.zeros_like(strokes)
    for down in range(3):
        for right in range(3):
            near |= padded[down : down + height, right : right + width]
    return near


def _fitted(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Pixels:
    """The strokes in ``box`` at the size that fits 20/28 of ``size``, aspect ratio kept."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(size[1] * 20 / 28 / width, size[0] * 20 / 28 / height)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(image.resize(fitted, Image.Resampling.LANCZOS, box=box))


def _centred(strokes: Pixels, size: tuple[int, int]) -> Pixels:
    """``strokes`` on black, their centre of mass in the middle as far as they stay inside."""
    mass = strokes.astype(np.float64)
    total = mass.sum()
    height, width = strokes.shape
    row = (mass.sum(axis=1) @ (np.arange(height) + 0.5)) / total
    column = (mass.sum(axis=0) @ (np.arange(width) + 0.5)) / total
    top = min(max(0, round(size[0] / 2 - row)), size[0] - height)
    left = min(max(0, round(size[1] / 2 - column)), size[1] - width)
    canvas: Pixels = np.zeros(size, dtype=np.uint8)
    canvas[top : top + height, left : left + width] = strokes
    return canvas
