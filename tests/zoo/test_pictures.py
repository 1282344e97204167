"""Pictures for golden checks."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from zoo.pictures import STROKES, load_picture


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
def test_photographs_are_read_from_the_package(name: str) -> None:
    with Image.open(io.BytesIO(load_picture(f"picture:{name}"))) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256


@pytest.mark.parametrize("digit", STROKES)
def test_digits_are_dark_ink_on_light_paper(digit: str) -> None:
    with Image.open(io.BytesIO(load_picture(f"digit:{digit}"))) as picture:
        pixels = np.asarray(picture)
    assert pixels[0, 0] == 255
    assert 0.02 < (pixels < 128).mean() < 0.25


@pytest.mark.parametrize("reference", ["digit:x", "picture:../README", "picture:none", "chelsea", "file:a", ""])
def test_anything_else_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="is no picture"):
        load_picture(reference)
