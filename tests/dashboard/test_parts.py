"""Uploads, marked text, charts, samples."""

from __future__ import annotations

import io
import re
import struct
import zlib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dashboard import charts, examples, highlight, uploads
from dashboard.client import Metering, Score
from dashboard.samples.draw_digits import SIZE, STROKES, draw


def picture(kind: str, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_known_by_their_bytes(kind: str) -> None:
    found = uploads.inspect("anything.txt", picture(kind))
    assert (found.media_type, found.width, found.height) == (f"image/{kind.lower()}", 8, 6)


@pytest.mark.parametrize("data", [picture("GIF"), picture("TIFF"), b"<svg/>", b"MZ\x90", b"%PDF-1.7", b"RIFF1234WAVE"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(uploads.Refused, match=r"cat\.jpg is not a JPEG, PNG or WebP"):
        uploads.inspect("cat.jpg", data)


def test_empty_and_too_large_files_are_refused() -> None:
    with pytest.raises(uploads.Refused, match="empty"):
        uploads.inspect("cat.jpg", b"")
    with pytest.raises(uploads.Refused, match="limit is 10 MB"):
        uploads.inspect("cat.jpg", b"\xff\xd8\xff" + bytes(uploads.MAX_BYTES))


def test_a_broken_picture_is_refused() -> None:
    with pytest.raises(uploads.Refused, match="cannot be read"):
        uploads.inspect("cat.png", b"\x89PNG\r\n\x1a\n" + b"nothing")


@pytest.mark.parametrize("side", [9_000, 10_000, 60_000])
def test_a_small_file_that_claims_many_pixels_is_refused(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(uploads.Refused):
        uploads.inspect("bomb.png", b"\x89PNG\r\n\x1a\n" + chunk)


def test_marked_text_escapes_everything_from_outside() -> None:
    html = highlight.marked("<b>Paris</b> & more", [highlight.Mark(3, 8, "<LOC>", "#14a394")])
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "&lt;LOC&gt;" in html
    assert "&amp; more" in html


def test_marks_never_repeat_or_lose_text() -> None:
    text = "abcdef"
    marks = [
        highlight.Mark(1, 3, "", "#000000"),
        highlight.Mark(2, 5, "", "#000000"),
        highlight.Mark(5, 99, "", "#000000"),
        highlight.Mark(4, 4, "", "#000000"),
    ]
    html = highlight.marked(text, marks)
    assert html.count("<mark") == 1
    assert "".join(part.split(">")[-1] for part in html.split("<")) == text


def test_literal_text_is_not_read_as_markdown() -> None:
    assert highlight.literal("![x](http://e) *b*") == r"\!\[x\]\(http\:\/\/e\) \*b\*".replace(r"\/", "/")


def test_top_scores_keep_their_order() -> None:
    chart = charts.top_scores([Score("a", 0.9), Score("b", 0.1)]).to_dict()
    (rows,) = chart["datasets"].values()
    assert [(row["label"], row["score"]) for row in rows] == [("a", 0.9), ("b", 0.1)]


def test_latency_split_shows_every_stage_once() -> None:
    chart = charts.latency_split(Metering(20.0, {"auth": 1.0, "infer": 9.0, "total": 12.0})).to_dict()
    (rows,) = chart["datasets"].values()
    assert [(row["stage"], row["ms"]) for row in rows] == [
        ("auth", 1.0),
        ("infer", 9.0),
        ("other", 2.0),
        ("network", 8.0),
    ]


def test_similarity_matrix_has_a_cell_for_each_pair() -> None:
    chart = charts.similarity_matrix(["a", "b"], np.array([[1, 0.25], [0.25, 1]], dtype=np.float32)).to_dict()
    (rows,) = chart["datasets"].values()
    assert {(row["first"], row["second"]): row["cosine"] for row in rows} == {
        ("a", "a"): 1.0, ("a", "b"): 0.25, ("b", "a"): 0.25, ("b", "b"): 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", [*examples.PHOTOS.values(), *examples.DIGITS.values()])
def test_samples_are_small_pictures_that_pass_the_upload_check(name: str) -> None:
    source = examples.sample(name)
    assert len(source.picture.data) < 80_000
    assert max(source.picture.width, source.picture.height) <= 512
    assert name.startswith("digit-") or name in (examples.SAMPLES / "LICENCES.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("digit", sorted(STROKES))
def test_committed_digits_are_what_the_script_draws(digit: int) -> None:
    committed = Image.open(examples.SAMPLES / f"digit-{digit}.png").convert("L")
    drawn = draw(STROKES[digit]).convert("L")
    assert committed.size == (SIZE, SIZE)
    assert np.abs(np.asarray(committed, int) - np.asarray(drawn, int)).mean() < 4


def test_the_theme_and_privacy_settings_lie_beside_the_entry_script() -> None:
    config = (Path(examples.__file__).parent / ".streamlit" / "config.toml").read_text(encoding="utf-8")
    assert "gatherUsageStats = false" in config
    assert 'showErrorDetails = "none"' in config
    assert f"maxUploadSize = {uploads.MAX_BYTES // 2**20} " in config


def test_every_file_that_is_no_code_is_packaged() -> None:
    folder = Path(examples.__file__).parent
    section = (folder.parent / "pyproject.toml").read_text(encoding="utf-8").split("[tool.setuptools.package-data]")[1]
    section = section.split("\n[")[0]
    everywhere, ours = (re.search(rf"^{name} = \[(.+)\]$", section, re.M) for name in (r'"\*"', "dashboard"))
    assert everywhere
    assert ours
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            patterns = re.findall(r'"([^"]+)"', ours.group(1))
            below = any(fnmatch(str(path.relative_to(folder)), pattern) for pattern in patterns)
            in_package = (path.parent / "__init__.py").exists()
            general = any(fnmatch(path.name, pattern) for pattern in re.findall(r'"([^"]+)"', everywhere.group(1)))
            assert below or (in_package and general), path
