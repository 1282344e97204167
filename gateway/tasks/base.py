"""What a task is: from a call's inputs to inferences, and from their results to an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gateway.catalog import ModelCard
from gateway.settings import Settings
from gateway.tasks.picture_memory import PictureMemory
from gateway.tasks.text import Tokenizers
from gateway.types import Plan


@dataclass(slots=True, frozen=True)
class Shared:
    """What the tasks of all models have in common."""

    tokenizers: Tokenizers = field(default_factory=Tokenizers)
    pictures: PictureMemory = field(default_factory=PictureMemory)


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

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        self.card = card
        self.settings = settings
        self.shared = shared

    @abstractmethod
    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """Inferences for ``inputs`` (each task says what it takes) and the way to their answer.

        Raises ``Invalid`` (input or option out of range), ``UnknownOptions``, ``UnsupportedMediaType``
        (image format) and ``TooLarge`` (picture), with messages that may be shown.
        """

    def is_long(self, inputs: Any, options: Mapping[str, Any] | None = None) -> bool:  # noqa: ARG002 - not all look
        """Whether planning ``inputs`` with ``options`` would hold up the event loop and belongs in a thread."""
        return self.threaded
