"""What tasks answer: plain values, before any dialect gives them its own shape.

Scores and coordinates are finite: a model that answers NaN is refused with ``BadUpstream`` where the
answer is made, so no dialect ever writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy.typing as npt

FloatArray = npt.NDArray[Any]
"""float32 or float64."""


class Label(msgspec.Struct, frozen=True, gc=False):
    """A class and its score, after the scoring function (softmax, sigmoid, none)."""

    label: str
    score: float


class Entity(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """A token or a group of tokens with one label; ``start`` and ``end`` are characters of the text.

    ``entity`` and ``index`` (position of the token, special ones counted) are set without
    aggregation, ``entity_group`` with it.
    """

    entity: str | None = None
    entity_group: str | None = None
    score: float
    index: int | None = None
    word: str
    start: int
    end: int


class Span(msgspec.Struct, frozen=True, gc=False):
    """An answer in its context: ``context[start:end] == answer``; empty for "no answer"."""

    answer: str
    score: float
    start: int
    end: int


class Translation(msgspec.Struct, frozen=True, gc=False):
    """A translated text and the model's length-normalised log-probability, where it gives one."""

    text: str
    score: float | None = None


@dataclass(slots=True, frozen=True)
class Labels:
    """Of each input its classes, best first."""

    items: list[list[Label]]
    single: bool
    """Whether the call brought one input and not a list."""


@dataclass(slots=True, frozen=True)
class Entities:
    """Of each text its entities, in the order of the text."""

    items: list[list[Entity]]
    single: bool


@dataclass(slots=True, frozen=True)
class Answers:
    """Of each question its answers, best first."""

    items: list[list[Span]]
    single: bool
    top_k: int
    """What was asked for; an input may have fewer."""


@dataclass(slots=True, frozen=True)
class Translations:
    """Of each text its translation."""

    items: list[Translation]
    single: bool


@dataclass(slots=True, frozen=True)
class Embeddings:
    """Of each text one vector: ``vectors`` is float32 ``[texts, dimensions]``."""

    vectors: FloatArray
    tokens: list[int]
    """Tokens of each text, special ones included."""
    single: bool


@dataclass(slots=True, frozen=True)
class TokenEmbeddings:
    """Of each text a float32 ``[tokens, dimensions]``, special tokens included."""

    items: list[FloatArray]
    single: bool


@dataclass(slots=True, frozen=True)
class Similarities:
    """Cosines in [-1, 1], one a sentence, in their order."""

    scores: list[float]
