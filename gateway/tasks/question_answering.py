"""Extractive question answering: the span of the context that answers the question.

A long context is cut into windows. Scores follow Hugging Face's question-answering pipeline: the
softmax of the start logits times the softmax of the end logits, over tokens of the context and the
window's first token ("no answer"). Here the softmax runs over all windows together, so that spans of
different windows compare as their logits do; for one window it is the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from gateway.catalog import ModelCard
from gateway.errors import BadUpstream, Invalid
from gateway.settings import Settings
from gateway.tasks.answers import Answers, FloatArray, Span
from gateway.tasks.base import Shared
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.rows import Array
from gateway.tasks.scores import finite
from gateway.tasks.text import Passage, too_long
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


class QuestionAnswering(TextTask):
    """Takes ``{"question": ..., "context": ...}`` or a list of them; answers :class:`Answers`."""

    name: ClassVar[str] = "question-answering"
    serves: ClassVar[frozenset[str]] = frozenset({"question-answering"})

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        self._start = self.text_rows.output("start_logits")
        self._end = self.text_rows.output("end_logits")

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a window of a context."""
        chosen = parse_options(QuestionAnsweringOptions, options)
        items, single = as_list(inputs, self.settings.max_batch_items)
        pairs = [self._pair(item) for item in items]
        self.encoder.check_total([text for pair in pairs for text in pair])
        passages = [self._passage(question, context, chosen) for question, context in pairs]
        rows = [row for passage in passages for row in passage.rows()]
        self.encoder.check_count(len(rows), "context")
        batch = self.text_rows.batch(rows)

        def finish(results: Sequence[InferenceResult]) -> Answers:
            starts = iter(batch.each(results, self._start))
            ends = iter(batch.each(results, self._end))
            found = [
                answer_spans(
                    context,
                    passage,
                    [next(starts) for _ in passage.windows],
                    [next(ends) for _ in passage.windows],
                    chosen,
                )
                for (_, context), passage in zip(pairs, passages, strict=True)
            ]
            return Answers(found, single, chosen.top_k)

        return Plan(batch.requests, batch.units, finish)

    def _pair(self, item: Any) -> tuple[str, str]:
        if not isinstance(item, dict) or item.keys() != {"question", "context"}:
            raise Invalid('inputs must be {"question": ..., "context": ...}', param="inputs")
        question, context = item["question"], item["context"]
        return self.encoder.check(question, "question"), self.encoder.check(context, "context")

    def _passage(self, question: str, context: str, chosen: QuestionAnsweringOptions) -> Passage:
        tokenizer = self.encoder.tokenizer
        asked = tokenizer.encode(question, add_special_tokens=False)
        if chosen.max_question_len is not None and len(asked.ids) > chosen.max_question_len:
            question = question[: asked.offsets[chosen.max_question_len - 1][1]]
        encoding = tokenizer.encode(question, context)
        own = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
        for tokens, param in ((asked.ids, "question"), (own, "context")):
            if not tokens:
                raise Invalid(f"{param} is empty", param=param)
        beside = len(encoding.ids) - len(own)
        longest = min(chosen.max_seq_len or self.encoder.max_length, self.encoder.max_length)
        room = longest - beside
        if room < LEAST_CONTEXT:
            raise too_long(beside, max(0, longest - LEAST_CONTEXT), "question")
        stride = chosen.doc_stride
        if stride is None:
            stride = min(self.encoder.preprocessing.doc_stride, room // 2)
        if stride >= room:
            raise Invalid(f"doc_stride must be less than {room} with this question", param="doc_stride")
        return Passage(encoding, own[0], own[-1] + 1, self.encoder.windows(len(own), room, stride, "context"))


def answer_spans(
    context: str,
    passage: Passage,
    starts: Sequence[Array],
    ends: Sequence[Array],
    chosen: QuestionAnsweringOptions,
) -> list[Span]:
    """The ``top_k`` best spans of one context, from the logits of its windows."""
    start, end = _probabilities(passage, starts), _probabilities(passage, ends)
    wanted = chosen.top_k * 2 + 10 if chosen.align_to_words else chosen.top_k
    by_text: dict[str, Span] = {}
    for (offset, _), of_starts, of_ends in zip(passage.windows, start, end, strict=True):
        for first, last, score in _best_spans(of_starts[1:], of_ends[1:], wanted, chosen.max_answer_len):
            begin, stop = _characters(passage, offset + first, offset + last, chosen.align_to_words)
            text = context[begin:stop]
            known = by_text.get(text.lower())
            by_text[text.lower()] = (
                Span(known.answer, known.score + score, known.start, known.end)
                if known
                else Span(text, score, begin, stop)
            )
    answers = list(by_text.values())
    if chosen.handle_impossible_answer:
        null = min(float(of_starts[0] * of_ends[0]) for of_starts, of_ends in zip(start, end, strict=True))
        answers.append(Span("", null, 0, 0))
    return sorted(answers, key=lambda span: -span.score)[: chosen.top_k]


def _probabilities(passage: Passage, logits: Sequence[Array]) -> list[FloatArray]:
    """Of each window ``[1 + tokens]``: the first token ("no answer"), then the context's; the softmax runs
    over all windows together.
    """
    kept = []
    for (start, stop), values in zip(passage.windows, logits, strict=True):
        if values.ndim != 1 or values.shape[0] < passage.begin + stop - start:
            raise BadUpstream("the model did not answer one logit a token")
        own = values[passage.begin : passage.begin + stop - start]
        kept.append(finite(np.concatenate((values[:1], own)).astype(np.float64)))
    highest = max(float(values.max()) for values in kept)
    exponents = [np.exp(values - highest) for values in kept]
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


def _characters(passage: Passage, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    """Characters of the context from token ``first`` to ``last``, whole words if asked for."""
    words = passage.words
    if align_to_words and words[first] is not None and words[last] is not None:
        while first > 0 and words[first - 1] == words[first]:
            first -= 1
        while last + 1 < len(words) and words[last + 1] == words[last]:
            last += 1
    return int(passage.offsets[first, 0]), int(passage.offsets[last, 1])
