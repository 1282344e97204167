"""What a task is: from a call's inputs to inferences, and from their results to an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.catalog import ModelCard
from gateway.errors import Invalid
from gateway.settings import Settings
from gateway.tasks.text import Tokenizers
from gateway.types import Plan


class EmptyInput(Invalid):
    """A call without anything to work on: no texts, no pictures."""


class Task(ABC):
    """One task on one model. Pure: the tokenizer is read at construction, nothing after that does I/O.

    A constructor raises ``ValueError`` for a recipe that the task cannot work with.
    """

    name: ClassVar[str]
    """Hugging Face's name of the task."""
    serves: ClassVar[frozenset[str]]
    """The ``task`` of the model cards that it runs on."""
    threaded: ClassVar[bool] = False
    """Whether :meth:`plan` is always too long for the event loop (images)."""

    def __init__(self, card: ModelCard, settings: Settings, tokenizers: Tokenizers) -> None:
        self.card = card
        self.settings = settings
        self.tokenizers = tokenizers

    @abstractmethod
    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """Inferences for ``inputs`` (each task says what it takes) and the way to their answer.

        Raises ``Invalid`` (input or option out of range), ``UnknownOptions``, ``UnsupportedMediaType``
        (image format) and ``TooLarge`` (picture), with messages that may be shown.
        """

    def is_long(self, inputs: Any) -> bool:  # noqa: ARG002 - not every task looks
        """Whether planning ``inputs`` would hold up the event loop and belongs in a thread."""
        return self.threaded


def as_list(inputs: Any, limit: int) -> tuple[list[Any], bool]:
    """``inputs`` as a list, and whether it was a single one. Raises ``Invalid`` for none or too many."""
    if not isinstance(inputs, list):
        return [inputs], True
    if not inputs:
        raise EmptyInput("inputs is empty", param="inputs")
    if len(inputs) > limit:
        raise Invalid(f"inputs: {len(inputs)} items; at most {limit} are taken in one call", param="inputs")
    return inputs, False
