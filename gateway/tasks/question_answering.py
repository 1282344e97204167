"""Extractive question answering: the span of the context that answers the question.

A long context is cut into windows. Scores follow Hugging Face's question-answering pipeline: the
softmax of the start logits times the softmax of the end logits, over tokens of the context and the
window's first token ("no answer"). Here the softmax runs over all windows together, so that spans of
different windows compare as their logits do; for one window it is the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from tokenizers import Encoding

from gateway.catalog import ModelCard
from gateway.errors import BadUpstream, Invalid
from gateway.settings import Settings
from gateway.tasks.answers import Answers, FloatArray, Span
from gateway.tasks.base import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.rows import Array, Row
from gateway.tasks.scores import finite
from gateway.tasks.text import Tokenizers, too_long, window_count
from gateway.tasks.text_task import TextTask
from gateway.types import InferenceResult, Plan

Positive = Annotated[int, msgspec.Meta(ge=1)]

LEAST_CONTEXT = 8
"""Tokens of context that a window must have room for beside the question."""


class QuestionAnsweringOptions(Options, frozen=True):
    """As Hugging Face has them; lengths in tokens. ``max_seq_len`` and ``doc_stride`` default to the recipe's."""

    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    doc_stride: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_answer_len: Positive = 15
    max_seq_len: Positive | None = None
    max_question_len: Positive | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True


@dataclass(slots=True, frozen=True)
class Example:
    """A question's context and the windows over it."""

    context: str
    windows: list[Encoding]


class QuestionAnswering(TextTask):
    """Takes ``{"question": ..., "context": ...}`` or a list of them; answers :class:`Answers`."""

    name: ClassVar[str] = "question-answering"
    serves: ClassVar[frozenset[str]] = frozenset({"question-answering"})

    def __init__(self, card: ModelCard, settings: Settings, tokenizers: Tokenizers) -> None:
        super().__init__(card, settings, tokenizers)
        self._start = self.text_rows.output("start_logits")
        self._end = self.text_rows.output("end_logits")

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a window of a context."""
        chosen = parse_options(QuestionAnsweringOptions, options)
        items, single = as_list(inputs, self.settings.max_batch_items)
        pairs = [self._pair(item) for item in items]
        self.encoder.check_total([text for pair in pairs for text in pair])
        examples = [Example(context, self._windows(question, context, chosen)) for question, context in pairs]
        flat = [window for example in examples for window in example.windows]
        self.encoder.check_count(len(flat), "context")
        batch = self.text_rows.batch([Row(window.ids, window.type_ids) for window in flat])

        def finish(results: Sequence[InferenceResult]) -> Answers:
            starts = iter(batch.each(results, self._start))
            ends = iter(batch.each(results, self._end))
            found = [
                answer_spans(
                    example, [next(starts) for _ in example.windows], [next(ends) for _ in example.windows], chosen
                )
                for example in examples
            ]
            return Answers(found, single, chosen.top_k)

        return Plan(batch.requests, batch.units, finish)

    def _pair(self, item: Any) -> tuple[str, str]:
        if not isinstance(item, dict) or item.keys() != {"question", "context"}:
            raise Invalid('inputs must be {"question": ..., "context": ...}', param="inputs")
        question, context = item["question"], item["context"]
        return self.encoder.check(question, "question"), self.encoder.check(context, "context")

    def _windows(self, question: str, context: str, chosen: QuestionAnsweringOptions) -> list[Encoding]:
        tokenizer = self.encoder.tokenizer
        asked = tokenizer.encode(question, add_special_tokens=False)
        if chosen.max_question_len is not None:
            asked.truncate(chosen.max_question_len)
        told = tokenizer.encode(context, add_special_tokens=False)
        for encoding, param in ((asked, "question"), (told, "context")):
            if not encoding.ids:
                raise Invalid(f"{param} is empty", param=param)
        longest = min(chosen.max_seq_len or self.encoder.max_length, self.encoder.max_length)
        room = longest - len(asked.ids) - tokenizer.num_special_tokens_to_add(is_pair=True)
        if room < LEAST_CONTEXT:
            raise too_long(len(asked.ids), max(0, room + len(asked.ids) - LEAST_CONTEXT), "question")
        if len(told.ids) > room:
            stride = self.encoder.preprocessing.doc_stride if chosen.doc_stride is None else chosen.doc_stride
            if chosen.doc_stride is None:
                stride = min(stride, room // 2)
            if stride >= room:
                raise Invalid(f"doc_stride must be less than {room} with this question", param="doc_stride")
            self.encoder.check_count(window_count(len(told.ids), room, stride), "context")
            told.truncate(room, stride=stride)
        whole = tokenizer.post_process(asked, told)
        return [whole, *whole.overflowing]


def answer_spans(
    example: Example, starts: Sequence[Array], ends: Sequence[Array], chosen: QuestionAnsweringOptions
) -> list[Span]:
    """The ``top_k`` best spans of one context, from the logits of its windows."""
    masks = [_answerable(window) for window in example.windows]
    start = _probabilities(example.windows, masks, starts)
    end = _probabilities(example.windows, masks, ends)
    wanted = chosen.top_k * 2 + 10 if chosen.align_to_words else chosen.top_k
    by_text: dict[str, Span] = {}
    for window, mask, of_starts, of_ends in zip(example.windows, masks, start, end, strict=True):
        for first, last, score in _best_spans(of_starts[mask], of_ends[mask], wanted, chosen.max_answer_len):
            offset = int(mask[0])
            begin, stop = _characters(window, first + offset, last + offset, chosen.align_to_words)
            text = example.context[begin:stop]
            key = text.lower()
            known = by_text.get(key)
            by_text[key] = (
                Span(known.answer, known.score + score, known.start, known.end)
                if known
                else Span(text, score, begin, stop)
            )
    answers = list(by_text.values())
    if chosen.handle_impossible_answer:
        null = min(float(of_starts[0] * of_ends[0]) for of_starts, of_ends in zip(start, end, strict=True))
        answers.append(Span("", null, 0, 0))
    return sorted(answers, key=lambda span: -span.score)[: chosen.top_k]


def _answerable(window: Encoding) -> Array:
    """Positions of the context's tokens, which stand together."""
    return np.flatnonzero(np.array([-1 if part is None else part for part in window.sequence_ids]) == 1)


def _probabilities(windows: list[Encoding], masks: list[Array], logits: Sequence[Array]) -> list[FloatArray]:
    """Of each window ``[tokens]``: softmax over the context's tokens and the first token, of all windows together."""
    masked = []
    for window, mask, values in zip(windows, masks, logits, strict=True):
        if values.ndim != 1 or values.shape[0] < len(window.ids):
            raise BadUpstream("the model did not answer one logit a token")
        kept = np.full(len(window.ids), -np.inf)
        kept[0] = values[0]
        kept[mask] = values[mask]
        finite(kept[mask])
        masked.append(kept)
    highest = max(float(values.max()) for values in masked)
    exponents = [np.exp(values - highest) for values in masked]
    total = sum(float(values.sum()) for values in exponents)
    return [values / total for values in exponents]


def _best_spans(start: FloatArray, end: FloatArray, wanted: int, longest: int) -> list[tuple[int, int, float]]:
    """The ``wanted`` best ``(first, last, score)`` with ``first <= last < first + longest``.

    Works on the band of the outer product only: ``[longest, tokens]`` rather than ``[tokens, tokens]``.
    """
    tokens = len(start)
    width = min(longest, tokens)
    padded = np.concatenate((end, np.zeros(width - 1)))
    band = start[:, None] * np.lib.stride_tricks.sliding_window_view(padded, width)
    flat = band.ravel()
    count = min(wanted, len(flat))
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.lexsort((best, -flat[best]))]  # of equal spans the first
    firsts, lengths = np.unravel_index(best, band.shape)
    return [
        (first, first + length, score)
        for first, length, score in zip(firsts.tolist(), lengths.tolist(), flat[best].tolist(), strict=True)
        if first + length < tokens
    ]


def _characters(window: Encoding, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Characters of the context from token ``first`` to ``last``, whole words if asked for."""
    if align_to_words:
        words = window.token_to_word(first), window.token_to_word(last)
        if words[0] is not None and words[1] is not None:
            begin = window.word_to_chars(words[0], 1)
            stop = window.word_to_chars(words[1], 1)
            if begin is not None and stop is not None:
                return begin[0], stop[1]
    return window.offsets[first][0], window.offsets[last][1]
