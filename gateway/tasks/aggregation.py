"""From the scores of tokens to entities: ``aggregation_strategy`` of Hugging Face's token classification.

- ``none``: one entity a token; ``simple``: neighbouring tokens of one tag are one entity;
- ``first``, ``average``, ``max``: the tokens of a word agree first (on the first token's label, on the
  mean of the scores, on the label of the surest token), then words are grouped like tokens.

A tag is a label without ``B-`` or ``I-``; a ``B-`` always begins a new entity.
Source: ``transformers.pipelines.token_classification``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gateway.tasks.answers import Entity, FloatArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Strategy = Literal["simple", "first", "average", "max"]
IntArray = npt.NDArray[Any]


@dataclass(slots=True, frozen=True)
class TokenScores:
    """The tokens of one window, special tokens left out."""

    scores: FloatArray
    """``[tokens, labels]``, each row a distribution."""
    positions: IntArray
    """``[tokens]``: index in the window, special tokens counted."""
    tokens: Sequence[str]
    ids: IntArray
    offsets: IntArray
    """``[tokens, 2]``: characters of the text."""
    labels: Sequence[str]


@dataclass(slots=True, frozen=True)
class WordRule:
    """How a tokenizer tells that a token continues a word."""

    has_prefix: bool
    """Continuing tokens are marked (WordPiece's ``##``): then a token longer than its text continues one."""
    unknown_id: int | None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordRule:
        """The rule of ``tokenizer``."""
        model = tokenizer.model
        names = (getattr(model, "unk_token", None), "<unk>", "[UNK]")  # a Unigram model keeps its own to itself
        unknown = next((name for name in names if name and tokenizer.token_to_id(name) is not None), None)
        return cls(
            bool(getattr(model, "continuing_subword_prefix", None)),
            tokenizer.token_to_id(unknown) if unknown else None,
        )

    def word_starts(self, text: str, tokens: TokenScores) -> IntArray:
        """Indices of the tokens that begin a word; the first always does."""
        begins, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
        if self.has_prefix:
            lengths = np.fromiter(map(len, tokens.tokens), dtype=np.int64, count=len(tokens.tokens))
            continues = lengths != ends - begins
        else:
            spaces = np.fromiter((character == " " for character in text), dtype=bool, count=len(text))
            spaces = np.append(spaces, False)
            continues = (begins > 0) & ~spaces[begins - 1] & ~spaces[begins]
        if self.unknown_id is not None:
            continues &= tokens.ids != self.unknown_id
        continues[0] = False
        return np.flatnonzero(~continues)


def entities_of_tokens(text: str, tokens: TokenScores, ignored: Collection[str], rule: WordRule) -> list[Entity]:
    """``aggregation_strategy`` none. ``word`` is the token, or the text itself where the tokenizer does not know it."""
    if not len(tokens.scores):
        return []
    best = tokens.scores.argmax(axis=1)
    wanted = ~_among(tokens.labels, ignored)[best]
    entities = []
    for index in np.flatnonzero(wanted).tolist():
        start, end = tokens.offsets[index].tolist()
        entities.append(
            Entity(
                entity=tokens.labels[best[index]],
                score=float(tokens.scores[index, best[index]]),
                index=int(tokens.positions[index]),
                word=text[start:end] if tokens.ids[index] == rule.unknown_id else tokens.tokens[index],
                start=start,
                end=end,
            )
        )
    return entities


def entities_of_groups(
    text: str, tokens: TokenScores, strategy: Strategy, ignored: Collection[str], rule: WordRule
) -> list[Entity]:
    """Every other strategy."""
    if not len(tokens.scores):
        return []
    if strategy == "simple":
        best = tokens.scores.argmax(axis=1)
        sure = tokens.scores[np.arange(len(best)), best]
        begins, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
    else:
        starts = rule.word_starts(text, tokens)
        best, sure = _words(tokens.scores, starts, strategy)
        begins = tokens.offsets[starts, 0]
        ends = tokens.offsets[np.append(starts[1:], len(tokens.offsets)) - 1, 1]
    return _groups(text, best, sure, begins, ends, tokens.labels, ignored)


def _words(scores: FloatArray, starts: IntArray, strategy: Strategy) -> tuple[IntArray, FloatArray]:
    """Label and score of each word whose tokens begin at ``starts``."""
    if strategy == "first":
        of_words = scores[starts]
    elif strategy == "average":
        counts = np.diff(np.append(starts, len(scores)))
        of_words = np.add.reduceat(scores, starts, axis=0) / counts[:, None]
    else:
        sure = scores.max(axis=1)
        word_of_token = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(scores))))
        reaches = sure == np.maximum.reduceat(sure, starts)[word_of_token]
        _, first = np.unique(word_of_token[reaches], return_index=True)
        of_words = scores[np.flatnonzero(reaches)[first]]
    best = of_words.argmax(axis=1)
    return best, of_words[np.arange(len(best)), best]


def _groups(
    text: str,
    best: IntArray,
    sure: FloatArray,
    begins: IntArray,
    ends: IntArray,
    labels: Sequence[str],
    ignored: Collection[str],
) -> list[Entity]:
    """Neighbours of one tag as one entity; its score is their mean."""
    tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    tag_ids = np.array([tags.index(tag) for tag in tags])[best]
    opens = np.array([label.startswith("B-") for label in labels])[best]
    breaks = np.append(True, (tag_ids[1:] != tag_ids[:-1]) | opens[1:])
    firsts = np.flatnonzero(breaks)
    lasts = np.append(firsts[1:], len(best)) - 1
    means = np.add.reduceat(sure, firsts) / (lasts - firsts + 1)
    entities = []
    for first, last, mean in zip(firsts.tolist(), lasts.tolist(), means.tolist(), strict=True):
        group = labels[best[first]].split("-", 1)[-1]
        if group not in ignored:
            start, end = int(begins[first]), int(ends[last])
            entities.append(Entity(entity_group=group, score=mean, word=text[start:end], start=start, end=end))
    return entities


def _among(labels: Sequence[str], ignored: Collection[str]) -> npt.NDArray[np.bool_]:
    return np.array([label in ignored for label in labels], dtype=bool)
