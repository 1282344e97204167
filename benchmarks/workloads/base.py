"""What a load generator sends and how it knows a right answer: one class per kind of call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

GOLDEN_EVERY = 8
"""One request in so many carries an input whose answer is known; the others are unique."""


class WrongAnswer(Exception):
    """A 200 that is not an answer to the request; the message says why."""


@dataclass(slots=True, frozen=True)
class Payload:
    """One request, ready for the wire; the key is added by the transport."""

    path: str
    body: bytes
    content_type: str | None = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    golden: int | None = None
    """Number of the golden input, None for a unique one."""
    expected: Any = None
    """What the workload's ``matches`` compares with, if known beforehand."""
    message: bytes | None = None
    """The same inference as a serialised ``inference.ModelInferRequest``, where the workload has one."""
    rows: int = 1
    """Inferences that the request asks for."""


class Workload(ABC):
    """An endless, seeded sequence of requests for one model in one dialect.

    Unique inputs defeat caches; every ``GOLDEN_EVERY``-th request is one of a few golden inputs. The
    answer to a golden input must equal ``Payload.expected`` where that is known, and else the first
    answer that this process got to it (the warm-up asks each once, alone), so that an answer that
    was mixed up, corrupted or changed by batching shows under load.
    """

    name: str = ""
    model: str = ""
    rows_unit: str = "requests"

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._references: dict[int, Any] = {}

    @property
    @abstractmethod
    def goldens(self) -> int:
        """How many golden inputs there are."""

    @abstractmethod
    def golden(self, number: int) -> Payload:
        """Golden request ``number``."""

    @abstractmethod
    def unique(self, index: int) -> Payload:
        """The request ``index``, unlike every other."""

    @abstractmethod
    def parse(self, payload: Payload, body: bytes) -> Any:
        """The answer in a comparable form. Raises :class:`WrongAnswer` if it is malformed or plainly wrong."""

    @abstractmethod
    def matches(self, reference: Any, answer: Any) -> bool:
        """Whether two answers to one input are the same but for rounding."""

    def request(self, index: int) -> Payload:
        """The request ``index`` of the sequence; a pure function of seed and index."""
        if self.goldens and index % GOLDEN_EVERY == 0:
            return self.golden((index // GOLDEN_EVERY) % self.goldens)
        return self.unique(index)

    def expect(self, number: int, answer: Any) -> None:
        """From now on golden input ``number`` must be answered like ``answer`` (as :meth:`parse` has it)."""
        self._references[number] = answer

    def check(self, payload: Payload, body: bytes) -> None:
        """Raise :class:`WrongAnswer` unless ``body`` of a 200 answers ``payload``."""
        answer = self.parse(payload, body)
        if payload.golden is None:
            return
        known = self._references.setdefault(payload.golden, answer if payload.expected is None else payload.expected)
        for reference in (payload.expected, known):
            if reference is not None and not self.matches(reference, answer):
                wanted = _short(reference)
                raise WrongAnswer(f"golden input {payload.golden} was answered {_short(answer)}, not {wanted}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
