"""Seeded texts with a realistic distribution of lengths, from the lines in ``benchmarks/data``."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files


def lines(file: str) -> list[str]:
    """The lines of a file in ``benchmarks/data``."""
    text = (files("benchmarks") / "data" / file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


@dataclass(slots=True, frozen=True)
class Lengths:
    """Log-normal numbers of words, cut at both ends: most texts are short, a few are long."""

    median: float
    sigma: float
    low: int
    high: int

    def draw(self, random_: random.Random) -> int:
        """One length in words (characters for Chinese)."""
        return max(self.low, min(self.high, round(random_.lognormvariate(math.log(self.median), self.sigma))))


def compose(sentences: Sequence[str], lengths: Lengths, seed: int, count: int, separator: str = " ") -> list[str]:
    """``count`` texts, each made of whole sentences until the drawn length is reached, then cut to it."""
    random_ = random.Random(seed)
    return [_one(sentences, lengths.draw(random_), random_, separator) for _ in range(count)]


def _one(sentences: Sequence[str], length: int, random_: random.Random, separator: str) -> str:
    words: list[str] = []
    while len(words) < length:
        sentence = random_.choice(sentences)
        words.extend(sentence.split(separator) if separator else sentence)
    return separator.join(words[:length])
