"""What the text tasks share: an encoder, the rows of their model, and their limits."""

from __future__ import annotations

from typing import Any

from gateway.catalog import ModelCard
from gateway.settings import Settings
from gateway.tasks.base import Task
from gateway.tasks.rows import TextRows
from gateway.tasks.text import LONG_TEXT, TextEncoder, Tokenizers


class TextTask(Task):
    """A task whose inputs are texts."""

    def __init__(self, card: ModelCard, settings: Settings, tokenizers: Tokenizers) -> None:
        super().__init__(card, settings, tokenizers)
        self.encoder = TextEncoder(card, settings, tokenizers)
        self.text_rows = TextRows(card, self.encoder.preprocessing, settings)

    def is_long(self, inputs: Any) -> bool:
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
