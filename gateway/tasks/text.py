"""From text to token ids: checks, truncation, windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gateway.catalog import ModelCard, TextPreprocessing, file_sha256
from gateway.errors import Invalid
from gateway.settings import Settings
from gateway.tasks.inputs import EmptyInput
from gateway.tasks.rows import Row

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Direction = Literal["left", "right"]

LONG_TEXT = 8_192
"""Characters of a call from which on tokenising is worth a thread (about 2 ms)."""


class Tokenizers:
    """Tokenizers by content: models that share a ``tokenizer.json`` share one in memory."""

    def __init__(self) -> None:
        self._by_content: dict[bytes, Tokenizer] = {}

    def load(self, path: Path) -> Tokenizer:
        """The tokenizer in ``path``, without the truncation and padding the file may ask for.

        Raises ``ValueError`` if the file is missing or is no tokenizer.
        """
        # Imported here: memory that a gateway which nobody has sent a text never needs.
        from tokenizers import Tokenizer  # noqa: PLC0415

        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            if digest not in self._by_content:
                tokenizer = Tokenizer.from_buffer(content)
                tokenizer.no_truncation()
                tokenizer.no_padding()
                self._by_content[digest] = tokenizer
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a tokenizer: {error}") from error
        return self._by_content[digest]


def has_validated_tokenizer(card: ModelCard) -> bool:
    """Whether the model's tokenizer is the file that its build validated: it can be loaded when it is needed."""
    preprocessing, evidence = card.recipe.preprocessing, card.evidence
    if not isinstance(preprocessing, TextPreprocessing) or evidence is None:
        return False
    expected = evidence.files.get(preprocessing.tokenizer)
    try:
        return expected is not None and file_sha256(card.folder / preprocessing.tokenizer) == expected
    except OSError:
        return False


class TextEncoder:
    """Encodes the texts of one model within its limits.

    Every text is checked: a NUL character, a lone surrogate, more than ``max_text_chars`` characters,
    or nothing that becomes a token is ``Invalid``.
    """

    def __init__(self, card: ModelCard, settings: Settings, tokenizers: Tokenizers) -> None:
        preprocessing = card.recipe.preprocessing
        if not isinstance(preprocessing, TextPreprocessing):
            raise ValueError(f"model {card.name}: its recipe has no text preprocessing")
        self.preprocessing = preprocessing
        self.max_length = preprocessing.max_length
        self.tokenizer = tokenizers.load(card.folder / preprocessing.tokenizer)
        self.vocabulary_size = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self.prefix, self.suffix = _special_tokens(self.tokenizer)
        self._settings = settings
        self._specials = len(self.prefix) + len(self.suffix)
        self._cut_at = 12 * self.max_length if self.tokenizer.pre_tokenizer is not None else None

    # --- checks

    def check(self, text: Any, param: str = "inputs") -> str:
        """``text`` if it is one. Raises ``Invalid``."""
        if not isinstance(text, str):
            raise Invalid(f"{param} must be a text", param=param)
        if len(text) > self._settings.max_text_chars:
            raise Invalid(
                f"{param} has {len(text)} characters; at most {self._settings.max_text_chars} are taken", param=param
            )
        if "\0" in text:
            raise Invalid(f"{param} holds a NUL character", param=param)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Invalid(f"{param} holds half of a surrogate pair", param=param) from error
        return text

    def check_all(self, texts: Sequence[Any], param: str = "inputs") -> list[str]:
        """``texts`` if they are some, within the limits of one call. Raises ``Invalid``."""
        self.check_count(len(texts), param)
        checked = [self.check(text, param) for text in texts]
        self.check_total(checked, param)
        return checked

    def check_total(self, texts: Sequence[Sequence[Any]], param: str = "inputs") -> None:
        """Raises ``Invalid`` if ``texts`` (or lists of token ids) are too long together."""
        characters = sum(map(len, texts))
        if characters > self._settings.max_call_chars:
            raise Invalid(
                f"{param} has {characters} characters or ids;"
                f" at most {self._settings.max_call_chars} are taken in one call",
                param=param,
            )

    def check_count(self, count: int, param: str = "inputs") -> None:
        """Raises ``Invalid`` if ``count`` texts or windows are none, or too many for one call."""
        if count == 0:
            raise EmptyInput(f"{param} is empty", param=param)
        if count > self._settings.max_batch_items:
            raise Invalid(
                f"{param}: {count} rows; at most {self._settings.max_batch_items} are taken in one call", param=param
            )

    def check_ids(self, ids: Sequence[Any], param: str = "inputs") -> None:
        """Raises ``Invalid`` unless ``ids`` are some of the vocabulary."""
        if not ids:
            raise EmptyInput(f"{param} is empty", param=param)
        if len(ids) > self._settings.max_text_chars:
            raise too_long(len(ids), self.max_length, param)
        if not all(type(value) is int and 0 <= value < self.vocabulary_size for value in ids):
            raise Invalid(f"{param}: token ids are whole numbers from 0 to {self.vocabulary_size - 1}", param=param)

    def prompt(self, name: str | None) -> str:
        """The text of the prompt called ``name``, empty without one. Raises ``Invalid``."""
        if name is None:
            return ""
        prompts = self.preprocessing.prompts
        if name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise Invalid(f"prompt_name: the model has no prompt of that name; it has: {known}", param="prompt_name")
        return prompts[name]

    # --- ids

    def rows(
        self, texts: Sequence[str], *, truncate: bool = True, direction: Direction = "right", param: str = "inputs"
    ) -> list[Row]:
        """Token ids of checked ``texts``, special tokens included.

        A text over ``max_length`` tokens loses its end (``direction`` left: its beginning), or is
        ``Invalid`` without ``truncate``.
        """
        cut = [self._cut(text) for text in texts] if truncate and direction == "right" else texts
        rows = []
        for text, beginning, encoding in zip(texts, cut, self.tokenizer.encode_batch_fast(cut), strict=True):
            ids = encoding.ids
            if beginning is not text and len(ids) < self.max_length:  # cut too early
                ids = self.tokenizer.encode(text).ids
            if len(ids) == self._specials:
                raise Invalid(f"{param} is empty: there is nothing in it that the model reads", param=param)
            rows.append(Row(self.fit(ids, truncate=truncate, direction=direction, param=param)))
        return rows

    def _cut(self, text: str) -> str:
        """The beginning of a long text, up to a space: tokens before a space do not depend on what follows."""
        if self._cut_at is None or len(text) <= self._cut_at:
            return text
        end = text.rfind(" ", 0, self._cut_at)
        return text[:end] if end > self._cut_at // 2 else text

    def fit(
        self, ids: list[int], *, truncate: bool, direction: Direction = "right", param: str = "inputs"
    ) -> list[int]:
        """``ids`` (special tokens included) within ``max_length``; special tokens are kept."""
        if len(ids) <= self.max_length:
            return ids
        if not truncate:
            raise too_long(len(ids), self.max_length, param)
        if direction == "right":
            end = len(ids) - len(self.suffix)
            return ids[: self.max_length - len(self.suffix)] + ids[end:]
        begin = len(self.prefix)
        return ids[:begin] + ids[len(ids) - (self.max_length - begin) :]

    def row_of_ids(self, ids: Sequence[Any], *, truncate: bool, direction: Direction, param: str) -> Row:
        """A row of the caller's own token ids; special tokens are put around them unless they are there.

        Raises ``Invalid`` for anything but ids of the vocabulary.
        """
        self.check_ids(ids, param)
        whole = list(ids)
        if not self._is_wrapped(whole):
            whole = [*self.prefix, *whole, *self.suffix]
        return Row(self.fit(whole, truncate=truncate, direction=direction, param=param))

    def _is_wrapped(self, ids: list[int]) -> bool:
        begin, end = len(self.prefix), len(ids) - len(self.suffix)
        return bool(self._specials) and end >= begin and ids[:begin] == self.prefix and ids[end:] == self.suffix

    # --- pairs and windows

    def pair(self, first: str, second: str, *, truncate: bool, param: str = "inputs") -> Row:
        """A pair of texts in one row, cut from the longer one token by token (``longest_first``)."""
        # Not Encoding.truncate: it keeps what it cuts off, and every combination of it.
        encoding = self.tokenizer.encode(first, second)
        owners = np.array([-1 if owner is None else owner for owner in encoding.sequence_ids])
        own = [np.flatnonzero(owners == part) for part in (0, 1)]
        if not len(own[0]) or not len(own[1]):
            raise Invalid(f"{param} is empty: there is nothing in it that the model reads", param=param)
        ids, types = encoding.ids, encoding.type_ids
        if len(ids) <= self.max_length:
            return Row(ids, types)
        if not truncate:
            raise too_long(len(ids), self.max_length, param)
        room = self.max_length - (len(ids) - len(own[0]) - len(own[1]))
        kept = np.ones(len(ids), dtype=bool)
        for positions, keep in zip(own, _longest_first(len(own[0]), len(own[1]), room), strict=True):
            kept[positions[keep:]] = False
        return Row(np.array(ids)[kept].tolist(), np.array(types)[kept].tolist())

    def passage(self, text: str, *, stride: int | None, param: str = "inputs") -> Passage:
        """``text`` in windows of ``max_length`` that share ``stride`` tokens; None: the first window only."""
        encoding = self.tokenizer.encode(text)
        length = len(encoding.ids) - self._specials
        if length == 0:
            raise Invalid(f"{param} is empty: there is nothing in it that the model reads", param=param)
        room = self.max_length - self._specials
        if (stride or 0) >= room:
            raise Invalid(f"stride must be less than {room}", param="stride")
        slices = self.windows(length, room, stride or 0, param) if stride is not None else [(0, min(length, room))]
        begin = len(self.prefix)
        return Passage(encoding, begin, begin + length, slices)

    def windows(self, length: int, room: int, overlap: int, param: str) -> list[tuple[int, int]]:
        """Slices of at most ``room`` tokens that cover ``length`` and share ``overlap``. Raises ``Invalid``
        for more than a call may have.
        """
        count = window_count(length, room, overlap)
        self.check_count(count, param)
        return [(start, min(start + room, length)) for start in range(0, count * (room - overlap), room - overlap)]


class Passage:
    """A tokenised text whose tokens from ``begin`` to ``end`` travel in windows; what stands before and
    after them (special tokens, the question of a pair) is part of every window.
    """

    def __init__(self, encoding: Encoding, begin: int, end: int, windows: list[tuple[int, int]]) -> None:
        self.begin = begin
        """Where the text's own tokens begin in every window."""
        self.windows = windows
        """Slices of the text's own tokens."""
        self.ids: list[int] = encoding.ids[begin:end]
        self.tokens: list[str] = encoding.tokens[begin:end]
        self.words: list[int | None] = encoding.word_ids[begin:end]
        self.special = np.array(encoding.special_tokens_mask[begin:end], dtype=bool)
        self.offsets = np.array(encoding.offsets[begin:end], dtype=np.int64).reshape(-1, 2)
        """Characters of the text, ``[tokens, 2]``."""
        self._around = (encoding.ids[:begin], encoding.ids[end:])
        self._types = encoding.type_ids[:begin], encoding.type_ids[begin:end], encoding.type_ids[end:]

    def rows(self) -> list[Row]:
        """One row a window."""
        before, after = self._around
        types_before, types, types_after = self._types
        return [
            Row(
                before + self.ids[start:stop] + after,
                types_before + types[start:stop] + types_after,
            )
            for start, stop in self.windows
        ]


def too_long(tokens: int, limit: int, param: str) -> Invalid:
    """The error for a text that is longer than the model takes and may not be cut."""
    return Invalid(f"{param} has {tokens} tokens; the model takes {limit}", param=param)


def window_count(tokens: int, room: int, overlap: int) -> int:
    """Windows of ``room`` tokens sharing ``overlap`` that cover ``tokens``."""
    if tokens <= room:
        return 1
    step = room - overlap
    return 1 + -(-(tokens - room) // step)


def _longest_first(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens of each of a pair stay: the shorter keeps up to half the room, the longer gets the rest."""
    kept = min(one, two, room // 2)
    return (room - kept, kept) if one > two else (kept, room - kept)


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a single text."""
    for probe in ("a", "1", ".", "的"):
        encoding = tokenizer.encode(probe)
        text = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
        if text:
            return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]
    return [], tokenizer.encode("").ids
