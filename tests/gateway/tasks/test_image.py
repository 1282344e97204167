"""Pictures: what is read, what is refused before it is decoded, and that the pixels are the right ones."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from gateway.catalog import ImagePreprocessing
from gateway.errors import Invalid, TooLarge, UnsupportedMediaType
from gateway.settings import Settings
from gateway.tasks.image import crop_box, decoding_bytes, model_pixels, open_picture, picture_bytes
from gateway.types import Units
from tests.gateway.tasks.models import Runner

PHOTO = ImagePreprocessing(resize_shorter_side=256, crop=(224, 224))
SQUARE = ImagePreprocessing(crop=(64, 64), interpolation="bilinear")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something with the smoothness of a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(data: bytes, preprocessing: ImagePreprocessing = PHOTO, limit: int = 50_000_000) -> np.ndarray:
    return model_pixels(open_picture(data, limit), preprocessing)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, colour: int = 2) -> bytes:
    """A PNG whose header says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


class TestPixels:
    @pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (300, 224), (1000, 257), (64, 48), (1, 1)])
    def test_equal_to_resizing_the_whole_and_cropping(self, size: tuple[int, int]) -> None:
        image = photograph(*size)
        width, height = size
        if width <= height:
            whole = image.resize((256, int(256 * height / width)), Image.Resampling.BICUBIC)
        else:
            whole = image.resize((int(256 * width / height), 256), Image.Resampling.BICUBIC)
        left, top = round((whole.width - 224) / 2), round((whole.height - 224) / 2)
        expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), dtype=int)
        got = pixels(encoded(image)).astype(int)
        assert got.shape == (224, 224, 3)
        assert np.abs(got - expected).max() <= 2
        assert np.abs(got - expected).mean() < 0.05

    def test_straight_to_the_models_size(self) -> None:
        image = photograph(100, 50)
        expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(pixels(encoded(image), SQUARE), expected)

    def test_a_reduced_decode_is_close_to_the_whole(self) -> None:
        image = photograph(2400, 1800)
        data = encoded(image, "JPEG", quality=92)
        reduced = pixels(data).astype(int)
        whole = pixels(encoded(Image.open(io.BytesIO(data)))).astype(int)
        assert np.abs(reduced - whole).mean() < 1.5

    def test_grey(self) -> None:
        grey = pixels(encoded(photograph(90, 60)), ImagePreprocessing(mode="L", crop=(28, 28)))
        assert grey.shape == (28, 28, 1)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_orientation_is_applied(self, orientation: int, kind: str) -> None:
        upright = Image.new("RGB", (160, 80), "blue")
        upright.paste("red", (0, 0, 80, 80))
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that makes the stored picture
        stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(stored, kind, exif=exif)
        assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (160, 80)
        got = pixels(data, SQUARE)
        assert got[32, 10, 0] > 200 > 60 > got[32, 10, 2]
        assert got[32, 50, 2] > 200 > 60 > got[32, 50, 0]

    def test_transparency_stands_on_white(self) -> None:
        for image in (
            Image.new("RGBA", (20, 20), (0, 0, 0, 0)),
            Image.new("LA", (20, 20), (0, 0)),
            Image.new("P", (20, 20), 0),
        ):
            if image.mode == "P":
                image.info["transparency"] = 0
            assert pixels(encoded(image), SQUARE).min() == 255
        assert pixels(encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 128)), "WEBP"), SQUARE)[0, 0, 1] in range(
            120, 135
        )

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
    @pytest.mark.parametrize("wanted", [PHOTO, SQUARE, ImagePreprocessing(mode="L", crop=(28, 28))])
    def test_large_ones_are_put_on_white_in_strips(self, mode: str, wanted: ImagePreprocessing) -> None:
        """As the whole at once would have been, but for what averaging down to twice the size does."""
        image = photograph(1_300, 901).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
        elif mode in {"RGBA", "LA"}:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        data = encoded(image, **({"transparency": 3} if mode == "P" else {}))
        whole = Image.open(io.BytesIO(data))
        if mode == "I;16":
            whole = Image.fromarray((np.asarray(whole) >> 8).astype(np.uint8))
        layer = whole.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(wanted.mode)
        got, expected = pixels(data, wanted).astype(int), pixels(encoded(flat), wanted).astype(int)
        assert np.abs(got - expected).mean() < 1
        assert np.abs(got - expected).max() < 16

    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_large_ones_are_turned_when_they_are_small(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(photograph(1_300, 901), exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        got, expected = pixels(data).astype(int), pixels(encoded(upright)).astype(int)
        assert np.abs(got - expected).mean() < 1
        assert np.abs(got - expected).max() < 16

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16"])
    def test_modes(self, mode: str) -> None:
        if mode == "I;16":
            data = encoded(Image.fromarray(np.full((20, 20), 0x8000, np.uint16)))
            assert pixels(data, SQUARE)[0, 0].tolist() == [128, 128, 128]
        else:
            data = encoded(photograph(20, 20).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
            assert pixels(data, SQUARE).shape == (64, 64, 3)

    def test_the_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
        for kind in ("PNG", "WEBP"):
            data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
            assert pixels(data, SQUARE)[30, 30, 0] > 200

    def test_crop_box_stays_inside(self) -> None:
        for size in ((1, 50_000), (50_000, 1), (3, 7), (224, 224), (10, 10)):
            left, top, right, bottom = crop_box(size, 256, (224, 224))
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]


class TestRefused:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"x",
            b"GIF89a" + b"\0" * 50,
            b"BM" + b"\0" * 60,
            b"%PDF-1.7\n",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"<?xml version='1.0'?><svg/>",
            b"SIMPLE  =                    T",
            b"II*\0" + b"\0" * 60,
            b"\0\0\0\x0cjP  \r\n\x87\n",
            b"\0\0\0\x1cftypavif",
            b"8BPS" + b"\0" * 60,
            b"icns\0\0\0\x10",
            b"RIFF\x10\0\0\0WAVEfmt ",
            b"\x89PNG",
            b"\xff\xd8",
            b"{}",
        ],
    )
    def test_other_formats(self, data: bytes) -> None:
        with pytest.raises(UnsupportedMediaType):
            open_picture(data, 1_000)

    def test_another_format_behind_the_right_first_bytes(self) -> None:
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
        for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP"):
            with pytest.raises(Invalid):
                pixels(start + eps)

    @pytest.mark.parametrize("side", [7_072, 50_000, 2**31 - 1])
    def test_a_header_that_says_too_much_is_believed(self, side: int) -> None:
        tracemalloc.start()
        with pytest.raises((TooLarge, Invalid)):
            pixels(png(side, side, chunk(b"IDAT", zlib.compress(b"\0" * 1000))))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20

    def test_a_jpeg_header_that_says_too_much(self) -> None:
        data = bytearray(encoded(photograph(64, 64), "JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
        with pytest.raises(TooLarge):
            pixels(bytes(data))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_truncated(self, kind: str) -> None:
        data = encoded(photograph(300, 200), kind)
        for part in (0.02, 0.3, 0.6, 0.95):
            with pytest.raises((Invalid, UnsupportedMediaType)):
                pixels(data[: max(12, int(len(data) * part))])

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_random_damage_is_an_error_or_a_picture(self, kind: str) -> None:
        data = encoded(photograph(80, 60), kind)
        random = np.random.default_rng(3)
        for _ in range(150):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 4):
                damaged[position] = random.integers(0, 256)
            try:
                assert pixels(bytes(damaged), SQUARE, 10_000_000).shape == (64, 64, 3)
            except (Invalid, TooLarge, UnsupportedMediaType):
                continue

    def test_an_animation_of_too_many_frames(self) -> None:
        frames = [Image.new("1", (1, 1), index % 2) for index in range(101)]
        data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
        with pytest.raises(Invalid, match="frames"):
            pixels(data)
        ten_thousand = png(8, 8, chunk(b"acTL", struct.pack(">II", 10_000, 0)), chunk(b"IDAT", b""))
        with pytest.raises(Invalid, match="frames"):
            pixels(ten_thousand)

    def test_a_jpeg_of_too_many_scans(self) -> None:
        """Each takes another look at every pixel; a hundred of them are 4 KB more."""
        data = encoded(photograph(40, 30), "JPEG", progressive=True)
        assert 5 < data.count(b"\xff\xda") < 15
        assert pixels(data, SQUARE).shape == (64, 64, 3)
        begin = data.rindex(b"\xff\xda")
        tables = data.rindex(b"\xff\xc4", 0, begin)
        with pytest.raises(Invalid, match="scans"):
            pixels(data[:-2] + data[tables:-2] * 60 + data[-2:])

    def test_bombs_beside_the_pixels(self) -> None:
        bomb = zlib.compress(b"\0" * 100_000_000, 9)
        rows = zlib.compress(b"\0" * (8 * 3 + 1) * 8)
        for extra in (
            chunk(b"zTXt", b"Comment\0\0" + bomb),
            chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
            chunk(b"iCCP", b"profile\0\0" + bomb),
        ):
            tracemalloc.start()
            with contextlib.suppress(Invalid):
                pixels(png(8, 8, extra, chunk(b"IDAT", rows)), SQUARE)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 32 * 2**20

    def test_exif_that_points_at_itself(self) -> None:
        looped = (
            b"Exif\0\0II*\0\x08\0\0\0"
            + struct.pack("<H", 1)
            + struct.pack("<HHII", 0x8769, 4, 1, 8)
            + struct.pack("<I", 8)
        )
        many = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + b"\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0" * 3000
        for exif in (looped, many, b"Exif\0\0", b"Exif\0\0MM\0*" + b"\xff" * 40):
            data = encoded(photograph(40, 30), "JPEG", exif=exif)
            with contextlib.suppress(Invalid):  # Pillow warns, and warnings are errors here
                assert pixels(data, SQUARE).shape == (64, 64, 3)


class TestSources:
    def test_base64(self) -> None:
        data = encoded(photograph(20, 20))
        text = base64.b64encode(data).decode()
        for source in (
            data,
            text,
            f"data:image/png;base64,{text}",
            base64.encodebytes(data).decode(),
            memoryview(data),
        ):
            assert picture_bytes(source) == data

    @pytest.mark.parametrize(
        "source",
        [
            "http://169.254.169.254/latest",
            "https://example.com/x.png",
            "HTTP://X",
            "file:///etc/passwd",
            "ftp://x/y",
            "gopher://x",
            "data:image/png,abc",
            "data:;base64",
            "not base64!",
            "abc",
            "é",
            7,
            None,
            ["a"],
            {"a": 1},
        ],
    )
    def test_refused(self, source: Any) -> None:
        with pytest.raises(Invalid):
            picture_bytes(source)


class TestTask:
    def test_units_are_the_pixels_that_were_sent(self, runner: Runner) -> None:
        plan = runner.plan("colours", "image-classification", encoded(photograph(300, 200), "JPEG"))
        assert plan.units == Units(pixels=60_000, rows=1)
        assert plan.requests[0].inputs[0].shape == (1, 32, 32, 3)

    def test_a_batch_is_cut_into_requests(self, runner: Runner) -> None:
        pictures = [encoded(Image.new("RGB", (40, 40), colour)) for colour in ("red", "green", "blue") * 3]
        plan = runner.plan("colours", "image-classification", pictures)
        assert [request.inputs[0].shape[0] for request in plan.requests] == [4, 4, 1]
        answer = runner.call("colours", "image-classification", pictures, top_k=1)
        assert [labels[0].label for labels in answer.items] == ["red", "green", "blue"] * 3

    def test_options(self, runner: Runner) -> None:
        red = encoded(Image.new("RGB", (40, 40), "red"))
        raw = runner.call("colours", "image-classification", red, function_to_apply="none").items[0]
        assert [(label.label, round(label.score, 3)) for label in raw] == [("red", 10.2), ("green", 0), ("blue", 0)]
        each = runner.call("colours", "image-classification", red, function_to_apply="sigmoid").items[0]
        assert each[1].score == pytest.approx(0.5)
        with pytest.raises(Invalid):
            runner.plan("colours", "image-classification", red, top_k=-1)

    def test_limits_of_a_call(self, runner: Runner) -> None:
        small = Runner(runner.catalog, Settings(max_call_pixels=5_000, max_image_pixels=4_000, max_batch_items=3))
        picture = encoded(Image.new("RGB", (50, 50)))
        with pytest.raises(TooLarge, match="in one call"):
            small.plan("colours", "image-classification", [picture] * 3)
        with pytest.raises(Invalid, match="4 items"):
            small.plan("colours", "image-classification", [picture] * 4)
        with pytest.raises(TooLarge, match="64 x 63"):
            small.plan("colours", "image-classification", encoded(Image.new("RGB", (64, 63))))


SIDE = 7_071
"""The largest square that is taken."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files that are the largest pictures that are legal."""
    folder = tmp_path_factory.mktemp("large")
    turned = Image.Exif()
    turned[0x0112] = 6
    options: dict[str, tuple[str, str, dict[str, Any]]] = {
        "rgba": ("RGBA", "PNG", {}),
        "turned": ("RGB", "PNG", {"exif": turned}),
        "palette": ("P", "PNG", {"transparency": 0}),
        "grey": ("I;16", "PNG", {}),
        "webp": ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        "progressive": ("RGB", "JPEG", {"progressive": True}),
    }
    for name, (mode, kind, more) in options.items():
        Image.new(mode, (SIDE, SIDE)).save(folder / name, kind, **more)
    return {name: folder / name for name in options}


class TestMemory:
    """What they take on the way through the task."""

    def weight(self, runner: Runner, model: str, path: Path, pictures: int = 1, threads: int = 1) -> float:
        """MiB on top of what the process had."""
        card = runner.catalog.get(model)
        assert card is not None
        script = Path(__file__).with_name("picture_weight.py")
        done = subprocess.run(
            [sys.executable, str(script), str(card.folder.parent), model, str(threads), str(pictures), str(path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    @pytest.mark.parametrize(
        ("name", "limit_mib"),
        [("rgba", 260), ("turned", 260), ("palette", 120), ("grey", 170), ("webp", 850), ("progressive", 520)],
    )
    def test_one(self, runner: Runner, files: dict[str, Path], name: str, limit_mib: float) -> None:
        """No more than it takes to decode it: 4 bytes a pixel, and what else the format needs; that is foreseen."""
        assert files[name].stat().st_size < 2**20
        weight = self.weight(runner, "colours", files[name])
        assert weight < limit_mib
        if name in {"rgba", "progressive", "grey"}:
            assert weight < decoding_bytes(open_picture(files[name].read_bytes(), 50_000_000), PHOTO) / 2**20 + 64

    @pytest.mark.slow
    def test_the_pictures_of_a_call_one_after_the_other(self, runner: Runner, files: dict[str, Path]) -> None:
        assert self.weight(runner, "colours", files["rgba"], pictures=3) < 260

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "limit_mib"), [("rgba", 600), ("webp", 950), ("progressive", 600)])
    def test_several_at_once_within_their_memory(
        self, runner: Runner, files: dict[str, Path], name: str, limit_mib: float
    ) -> None:
        assert self.weight(runner, "colours", files[name], threads=4) < limit_mib


class TestStrokes:
    """Digits on any ground become what MNIST has."""

    DIGITS = ImagePreprocessing(mode="L", crop=(28, 28), invert_light_background=True)

    def drawn(
        self, ground: int, ink: int, size: tuple[int, int] = (300, 200), at: tuple[int, int] = (60, 30)
    ) -> Image.Image:
        image = Image.new("L", size, ground)
        ImageDraw.Draw(image).line([at, (at[0] + 70, at[1]), (at[0] + 20, at[1] + 130)], fill=ink, width=12)
        return image

    def test_mnist_itself_is_untouched(self) -> None:
        digit = np.zeros((28, 28), np.uint8)
        digit[4:24, 10:14] = 200
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(digit)), self.DIGITS)[..., 0], digit)

    def test_ground_place_size_and_contrast_do_not_matter(self) -> None:
        reference = pixels(encoded(self.drawn(255, 0)), self.DIGITS)[..., 0].astype(int)
        for image in (
            self.drawn(0, 255),
            self.drawn(230, 60),
            self.drawn(40, 120),
            self.drawn(255, 0, (500, 400), (350, 200)),
            self.drawn(255, 0).resize((600, 400), Image.Resampling.BICUBIC),
        ):
            got = pixels(encoded(image), self.DIGITS)[..., 0].astype(int)
            assert np.abs(got - reference).mean() < 6

    def test_fits_the_box_and_is_centred_by_mass(self) -> None:
        got = pixels(encoded(self.drawn(255, 0)), self.DIGITS)[..., 0].astype(float)
        rows, columns = np.flatnonzero(got.max(axis=1) > 40), np.flatnonzero(got.max(axis=0) > 40)
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 in range(19, 22)
        centre = [(got.sum(axis=axis) @ (np.arange(28) + 0.5)) / got.sum() for axis in (1, 0)]
        assert np.abs(np.array(centre) - 14).max() <= 1

    def test_grain_is_not_ink(self) -> None:
        noisy = np.asarray(self.drawn(200, 30), dtype=int) + np.random.default_rng(1).integers(-12, 13, (200, 300))
        got = pixels(encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))), self.DIGITS)[..., 0]
        assert (got == 0).mean() > 0.5

    def test_light_may_fall_unevenly(self) -> None:
        even = self.drawn(220, 60)
        shade = 1 - 0.4 * np.linspace(0, 1, 300)[None, :] - 0.1 * np.linspace(0, 1, 200)[:, None] ** 2
        shaded = Image.fromarray((np.asarray(even) * shade).astype(np.uint8))
        got, expected = (pixels(encoded(image), self.DIGITS)[..., 0].astype(int) for image in (shaded, even))
        assert np.abs(got - expected).mean() < 6

    def test_transparent_canvas(self) -> None:
        canvas = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).line([(150, 20), (150, 180)], fill="black", width=14)
        assert pixels(encoded(canvas), self.DIGITS)[14, 14, 0] > 150

    @pytest.mark.parametrize("value", [0, 128, 255])
    def test_a_blank_picture(self, value: int) -> None:
        with pytest.raises(Invalid, match="no stroke"):
            pixels(encoded(Image.new("L", (100, 100), value)), self.DIGITS)
