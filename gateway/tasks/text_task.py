"""What the text tasks share: an encoder, the rows of their model, and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.catalog import ModelCard
from gateway.settings import Settings
from gateway.tasks.base import Shared, Task
from gateway.tasks.rows import TextRows
from gateway.tasks.text import LONG_TEXT, TextEncoder


class TextTask(Task):
    """A task whose inputs are texts."""

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        self.encoder = TextEncoder(card, settings, shared.tokenizers)
        self.text_rows = TextRows(card, self.encoder.preprocessing, settings)

    def is_long(self, inputs: Any, options: Mapping[str, Any] | None = None) -> bool:  # noqa: ARG002
        """Many characters take milliseconds to tokenise."""
        return characters(inputs) > LONG_TEXT


def characters(inputs: Any) -> int:
    """Characters of a text, or of the texts in a list or an object, one level deep and lists in objects."""
    if isinstance(inputs, str):
        return len(inputs)
    if isinstance(inputs, dict):
        return sum(map(characters, inputs.values()))
    if isinstance(inputs, list):
        if inputs and isinstance(inputs[0], int):
            return len(inputs)
        return sum(len(item) if isinstance(item, str) else characters_of_item(item) for item in inputs)
    return 0


def characters_of_item(item: Any) -> int:
    """Characters of one item of a list: an object's texts, a pair's, or a list of token ids."""
    if isinstance(item, dict):
        return sum(len(value) for value in item.values() if isinstance(value, str))
    return sum(len(part) if isinstance(part, str) else 1 for part in item) if isinstance(item, list) else 0
