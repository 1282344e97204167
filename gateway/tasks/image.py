"""From the bytes of a picture to the uint8 array that a model takes.

Only JPEG, PNG and WebP are read, told by their first bytes; what a picture says of its size is
checked before anything is decoded. Nothing is ever fetched: a URL is refused as text.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway.catalog import ImagePreprocessing
from gateway.errors import Invalid, TooLarge, UnsupportedMediaType
from gateway.tasks.containers import check_jpeg, check_png
from gateway.tasks.strokes import LARGEST, normalise_strokes

Pixels = npt.NDArray[np.uint8]

MAX_FRAMES = 100
"""Frames of an animation whose first is still taken."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of each orientation (EXIF 2.32, 4.6.4) upright."""
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    struct.error, zlib.error, UserWarning,
)  # fmt: skip
"""What Pillow's decoders raise for bytes that are not what their first ones promise (a warning only
where warnings are errors)."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", re.ASCII)
_DRAFT_MARGIN = 2
"""A JPEG is decoded at a half, a quarter, an eighth of its size if that leaves this many times the pixels
a side that the resize needs. On 200 photographs enlarged two and four times the best label stayed the
same for 200 and 198 and the accuracy for all; a margin of 1 changed 2 in 100. What has to be turned or
put on white is averaged down to the same margin first."""
_STRIP_PIXELS = 2**20
"""Of a large picture that are put on white at once: a copy or two of the whole would be what memory goes to."""
_BYTES_PER_PIXEL = {"PNG": 4, "JPEG": 4, "WEBP": 16}
"""Of memory, at the most, while Pillow 13 decodes; measured."""
_PROGRESSIVE_BYTES_PER_PIXEL = 10
"""Of a progressive JPEG, whose coefficients are all kept."""


def picture_bytes(source: Any) -> bytes:
    """The bytes of a picture given as bytes, as base64, or as a ``data:`` URL. Raises ``Invalid``."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, str):
        raise Invalid("inputs must be a picture: its bytes, or base64 in JSON", param="inputs")
    text = source.strip()
    if _URL.match(text):
        head, comma, text = text.partition(",")
        if not (head.startswith("data:") and comma and head.endswith(";base64")):
            raise Invalid("URLs are not fetched: send the picture itself, or a base64 data: URL", param="inputs")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("inputs is not valid base64", param="inputs") from error


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """The picture's header, read and checked; its pixels are not decoded yet.

    Raises ``UnsupportedMediaType`` for any other format, ``TooLarge`` for more than ``max_pixels``,
    ``Invalid`` for a damaged header, an animation of more than ``MAX_FRAMES``, or far too many parts.
    """
    kind = _format(data)
    if kind is None:
        raise UnsupportedMediaType("pictures are taken as JPEG, PNG or WebP", param="inputs")
    if kind in _CHECKS:
        _CHECKS[kind](data)
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
        frames = getattr(image, "n_frames", 1) if kind != "JPEG" else 1
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("the picture has too many pixels", param="inputs") from error
    except _DAMAGE as error:
        raise Invalid("the picture is damaged", param="inputs") from error
    if image.width * image.height > max_pixels:
        raise TooLarge(
            f"the picture has {image.width} x {image.height} pixels; at most {max_pixels} are taken", param="inputs"
        )
    if frames > MAX_FRAMES:
        raise Invalid(f"the animation has more than {MAX_FRAMES} frames", param="inputs")
    return image


_CHECKS = {"JPEG": check_jpeg, "PNG": check_png}


def decoding_bytes(image: Image.Image, preprocessing: ImagePreprocessing) -> int:
    """Memory that :func:`model_pixels` takes for ``image`` at the most."""
    progressive = image.format == "JPEG" and "progressive" in image.info
    decoded = _PROGRESSIVE_BYTES_PER_PIXEL if progressive else _BYTES_PER_PIXEL[image.format or "WEBP"]
    width, height = _kept(image.size, preprocessing)
    return image.width * image.height * decoded + width * height * 4


def _format(data: bytes) -> str | None:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def model_pixels(image: Image.Image, preprocessing: ImagePreprocessing) -> Pixels:
    """Decode ``image`` and bring it to the model's size: uint8 ``[height, width, 1 or 3]``.

    The shorter side is resized, then the centre cropped, as torchvision does; both in one step, so
    that only the crop is computed. Orientation (EXIF) is applied, transparency stands on white. The memory
    it takes is :func:`decoding_bytes`. Raises ``Invalid`` for damaged or truncated data, and for digits
    without a stroke.
    """
    try:
        upright = _decode(image, preprocessing)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge("the picture has too many pixels", param="inputs") from error
    except (*_DAMAGE, MemoryError) as error:
        raise Invalid("the picture is damaged or incomplete", param="inputs") from error
    if preprocessing.invert_light_background:
        return normalise_strokes(upright, preprocessing.crop)[..., None]
    height, width = preprocessing.crop
    resized = upright.resize(
        (width, height),
        _FILTERS[preprocessing.interpolation],
        box=crop_box(upright.size, preprocessing.resize_shorter_side, preprocessing.crop),
    )
    pixels: Pixels = np.asarray(resized)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def crop_box(
    size: tuple[int, int], shorter_side: int | None, crop: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The part of a picture of ``size`` (width, height) that the centre crop (height, width) shows.

    Resizing this part to the crop's size puts every sample where resizing the whole and cropping would.
    """
    width, height = size
    if shorter_side is None:
        return 0, 0, width, height
    resized_width, resized_height = _resized(size, shorter_side)
    crop_height, crop_width = (
        min(wanted, there) for wanted, there in zip(crop, (resized_height, resized_width), strict=True)
    )
    left, top = round((resized_width - crop_width) / 2), round((resized_height - crop_height) / 2)
    x_scale, y_scale = width / resized_width, height / resized_height
    return (
        left * x_scale,
        top * y_scale,
        min(width, (left + crop_width) * x_scale),
        min(height, (top + crop_height) * y_scale),
    )


def _resized(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return shorter_side, int(shorter_side * height / width)
    return int(shorter_side * width / height), shorter_side


def _decode(image: Image.Image, preprocessing: ImagePreprocessing) -> Image.Image:
    """``image`` upright in the mode of ``preprocessing``; large ones smaller, but not so small as they will be."""
    mode = preprocessing.mode
    if image.format == "JPEG":
        image.draft(mode, _needed(image.size, preprocessing))
    image.load()
    turn = _turn(image)
    if image.mode != mode or _is_transparent(image):
        image = _flatten(image, mode, _kept(image.size, preprocessing))
    elif turn is not None:
        image = image.resize(_kept(image.size, preprocessing), Image.Resampling.BOX)
    return image if turn is None else image.transpose(turn)


def _needed(size: tuple[int, int], preprocessing: ImagePreprocessing) -> tuple[int, int]:
    """Width and height that a picture of ``size`` must keep; it may have to be turned yet."""
    if preprocessing.invert_light_background:
        scale = max(size) / LARGEST
        wanted = (round(size[0] / scale), round(size[1] / scale))
    elif preprocessing.resize_shorter_side is not None:
        wanted = _resized(size, preprocessing.resize_shorter_side)
    else:
        wanted = (max(preprocessing.crop), max(preprocessing.crop))
    return max(1, wanted[0] * _DRAFT_MARGIN), max(1, wanted[1] * _DRAFT_MARGIN)


def _kept(size: tuple[int, int], preprocessing: ImagePreprocessing) -> tuple[int, int]:
    """Width and height that a large picture of ``size`` is averaged down to, a whole number of pixels to one or so."""
    needed = _needed(size, preprocessing)
    return size[0] // max(1, size[0] // needed[0]), size[1] // max(1, size[1] // needed[1])


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF says has to be done to stand the picture upright; damaged EXIF says nothing."""
    if "exif" not in image.info and "Raw profile type exif" not in image.info:
        return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return None


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info


def _flatten(image: Image.Image, mode: str, size: tuple[int, int]) -> Image.Image:
    """``image`` in ``mode`` (RGB or L), averaged down to ``size``, a strip after the other."""
    width, height = image.size
    scale = height / size[1]
    rows = max(1, int(_STRIP_PIXELS / width / scale))
    canvas = Image.new(mode, size)
    for top in range(0, size[1], rows):
        bottom = min(size[1], top + rows)
        first, last = int(top * scale), min(height, math.ceil(bottom * scale))
        strip = _on_white(image.crop((0, first, width, last)), mode)
        box = (0, top * scale - first, width, min(bottom * scale - first, last - first))
        canvas.paste(strip.resize((size[0], bottom - top), Image.Resampling.BOX, box=box), (0, top))
    return canvas


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """``image`` in ``mode`` (RGB or L), transparency on white, 16-bit grey scaled to 8."""
    if _is_transparent(image):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray((np.asarray(image).clip(0, 65535).astype(np.uint32) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)
