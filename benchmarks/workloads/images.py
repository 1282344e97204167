"""Pictures: photographs that Python packages ship, varied by a seed, and hand-drawn looking digits."""

from __future__ import annotations

import io
import random
from importlib.resources import files
from typing import Any

import msgspec
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from typing_extensions import override

from benchmarks.workloads.base import Payload, Workload, WrongAnswer

PHOTOGRAPHS = (
    "chelsea.png",
    "coffee.png",
    "astronaut.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
)
"""In scikit-image's wheel: a cat, a cup of espresso, an astronaut, a rocket, a garage, galaxies."""
VARIATIONS = 96


class Pictures(Workload):
    """Raw picture bytes to an image-classification model; ``[{"label", "score"}]`` comes back.

    A number in a comment segment makes each JPEG unique without encoding it again.
    """

    classes = 1000

    def __init__(self, seed: int, model: str | None = None, path: str | None = None) -> None:
        super().__init__(seed)
        self.model = model or self.model
        self._path = path or f"/hf/models/{self.model}"
        random_ = random.Random(seed)
        self._pictures = [self.draw(number, random_) for number in range(VARIATIONS)]

    def draw(self, number: int, random_: random.Random) -> bytes:
        """JPEG number ``number``, varied by ``random_``."""
        raise NotImplementedError

    @override
    @property
    def goldens(self) -> int:
        return 12

    @override
    def golden(self, number: int) -> Payload:
        return Payload(self._path, self._pictures[number], "image/jpeg", golden=number)

    @override
    def unique(self, index: int) -> Payload:
        return Payload(self._path, with_comment(self._pictures[index % VARIATIONS], index), "image/jpeg")

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        try:
            best = msgspec.json.decode(body)[0]
            label, score = best["label"], float(best["score"])
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise WrongAnswer(f"not [{{label, score}}]: {body[:120]!r}") from error
        if not 1 / self.classes - 1e-6 <= score <= 1 + 1e-6:
            raise WrongAnswer(f"the best of {self.classes} labels has score {score}")
        return label, score

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(reference[0] == answer[0] and abs(reference[1] - answer[1]) < 0.02)


class ImageNet(Pictures):
    """Photographs of 320 to 640 pixels, cropped, brightened and compressed differently each time."""

    name = "imagenet"
    model = "imagenet"

    def __init__(self, seed: int, model: str | None = None, path: str | None = None) -> None:
        folder = files("skimage").joinpath("data")
        self._sources = [_load(folder.joinpath(name).read_bytes()) for name in PHOTOGRAPHS]
        super().__init__(seed, model, path)

    @override
    def draw(self, number: int, random_: random.Random) -> bytes:
        source = self._sources[number % len(self._sources)]
        width, height = source.size
        keep = random_.uniform(0.8, 1.0)
        left, top = random_.uniform(0, 1 - keep) * width, random_.uniform(0, 1 - keep) * height
        picture = source.crop((int(left), int(top), int(left + keep * width), int(top + keep * height)))
        shorter = random_.randint(320, 480)
        scale = shorter / min(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        return _jpeg(ImageEnhance.Brightness(picture).enhance(random_.uniform(0.85, 1.15)), random_.randint(78, 94))


class ImageNetTorchScript(ImageNet):
    """The TorchScript twin."""

    name = "imagenet-torchscript"
    model = "imagenet-torchscript"


class Digits(Pictures):
    """Digits in dark ink on light paper, shifted, turned and sized at random."""

    name = "digits"
    model = "digits"
    classes = 10

    @override
    def draw(self, number: int, random_: random.Random) -> bytes:
        picture = Image.new("L", (96, 96), random_.randint(225, 255))
        font = ImageFont.load_default(size=random_.randint(56, 72))
        origin = (24 + random_.randint(-8, 8), 8 + random_.randint(-8, 8))
        ImageDraw.Draw(picture).text(origin, str(number % 10), fill=random_.randint(0, 50), font=font)
        turned = picture.rotate(random_.uniform(-12, 12), fillcolor=240, resample=Image.Resampling.BILINEAR)
        return _jpeg(turned, random_.randint(80, 95))


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The same picture with a comment segment (marker FFFE) behind the start of image."""
    comment = b"%d" % number
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def _load(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        converted: Image.Image = picture.convert("RGB")
        return converted


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
