"""Spans and their scores, against a plain reading of Hugging Face's question-answering pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from gateway.errors import BadUpstream, Invalid
from gateway.tasks.answers import Span
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceResult
from tests.gateway.tasks.models import Runner, minilm_folder, table

CONTEXT = (
    "Ada Lovelace, born Augusta Ada Byron, wrote the first published program in 1843. It was meant for Charles "
    "Babbage's Analytical Engine, a machine that was never completed."
)
QUESTION = "Who wrote the first program?"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max())
    return exponents / exponents.sum()


def reference(
    tokenizer: Tokenizer,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    align_to_words: bool = True,
    handle_impossible_answer: bool = False,
) -> list[Span]:
    """One window: the outer product of start and end probabilities, its band, the best of it, whole words,
    equal answers added up.
    """
    encoding = tokenizer.encode(question, context)
    logits = table(2, 5)[encoding.ids] * np.array(encoding.type_ids)[:, None]
    own = np.array([sequence == 1 for sequence in encoding.sequence_ids])
    counted = own | (np.arange(len(own)) == 0)
    start, end = (softmax(np.where(counted, logits[:, side], -10_000.0)) for side in (0, 1))
    null = float(start[0] * end[0])
    band = np.tril(np.triu(np.outer(start * own, end * own)), max_answer_len - 1)
    order = np.argsort(-band, axis=None, kind="stable")[: top_k * 2 + 10 if align_to_words else top_k]
    found: dict[str, Span] = {}
    for first, last in zip(*np.unravel_index(order, band.shape), strict=True):
        if not band[first, last] > 0:
            continue
        if align_to_words:
            begin = encoding.word_to_chars(encoding.token_to_word(first), 1)[0]
            stop = encoding.word_to_chars(encoding.token_to_word(last), 1)[1]
        else:
            begin, stop = encoding.offsets[first][0], encoding.offsets[last][1]
        text, score = context[begin:stop], float(band[first, last])
        known = found.get(text.lower())
        found[text.lower()] = (
            Span(text, known.score + score, known.start, known.end) if known else Span(text, score, begin, stop)
        )
    spans = list(found.values())
    if handle_impossible_answer:
        spans.append(Span("", null, 0, 0))
    return sorted(spans, key=lambda span: -span.score)[:top_k]


@pytest.mark.parametrize("align_to_words", [True, False])
@pytest.mark.parametrize("handle_impossible_answer", [True, False])
@pytest.mark.parametrize("top_k", [1, 5, 40])
@pytest.mark.parametrize("max_answer_len", [1, 4, 15, 100])
def test_one_window_is_as_in_hugging_faces_pipeline(
    runner: Runner,
    tokenizer: Tokenizer,
    align_to_words: bool,
    handle_impossible_answer: bool,
    top_k: int,
    max_answer_len: int,
) -> None:
    options: dict[str, Any] = {
        "align_to_words": align_to_words,
        "handle_impossible_answer": handle_impossible_answer,
        "top_k": top_k,
        "max_answer_len": max_answer_len,
    }
    expected = reference(tokenizer, QUESTION, CONTEXT, **options)
    got = runner.call("qa", "question-answering", {"question": QUESTION, "context": CONTEXT}, **options).items[0]
    assert [(span.answer, span.start, span.end) for span in got] == [
        (span.answer, span.start, span.end) for span in expected
    ]
    np.testing.assert_allclose([span.score for span in got], [span.score for span in expected], rtol=1e-5)


def test_windows_cover_the_context_and_overlap(runner: Runner, tokenizer: Tokenizer) -> None:
    context = " ".join(f"word{number}" for number in range(90))
    plan = runner.plan("qa", "question-answering", {"question": QUESTION, "context": context}, doc_stride=10)
    beside = len(tokenizer.encode(QUESTION).ids) + 1
    room = 64 - beside
    own = tokenizer.encode(context, add_special_tokens=False).ids
    windows = []
    for request in plan.requests:
        ids, mask, kinds = (to_numpy(tensor) for tensor in request.inputs)
        for row in range(len(ids)):
            assert kinds[row, : beside - 1].sum() == 0
            windows.append(ids[row, mask[row] == 1][beside - 1 : -1].tolist())
    assert all(len(window) <= room for window in windows)
    starts = range(0, len(own), room - 10)
    assert sorted(map(tuple, windows)) == sorted(
        tuple(own[start : start + room]) for start in starts if start == 0 or start + 10 < len(own)
    )
    assert plan.units.rows == len(windows)


def test_windows_compare_by_their_logits(runner: Runner, tokenizer: Tokenizer) -> None:
    """The best span of a long context has the largest sum of logits, wherever it stands."""
    words = [word for word in map(tokenizer.id_to_token, range(3_000, 4_000)) if word.isalpha() and word.isascii()][
        :300
    ]
    context = " ".join(words)
    ids = tokenizer.encode(context, add_special_tokens=False).ids
    assert len(ids) == len(words)
    logits = table(2, 5)[ids]
    spans = [(first, last) for first in range(300) for last in range(first, min(first + 3, 300))]
    first, last = max(spans, key=lambda span: logits[span[0], 0] + logits[span[1], 1])
    answer = runner.call("qa", "question-answering", {"question": "a", "context": context}, max_answer_len=3).items[0][
        0
    ]
    assert answer.answer == " ".join(words[first : last + 1])
    assert 0 < answer.score <= 1
    assert context[answer.start : answer.end] == answer.answer


def test_offsets_are_characters(runner: Runner) -> None:
    context = "Ünïcödé 北京 🙂🙂 Zoë's café, naïve façade."
    answer = runner.call("qa", "question-answering", {"question": "Où?", "context": context}, top_k=20)
    for span in answer.items[0]:
        assert context[span.start : span.end] == span.answer


def test_a_batch(runner: Runner) -> None:
    inputs = [{"question": f"Who is number {n}?", "context": f"{CONTEXT} And {n}. " * (n + 1)} for n in range(5)]
    together = runner.call("qa", "question-answering", inputs)
    assert not together.single
    for item, spans in zip(inputs, together.items, strict=True):
        alone = runner.call("qa", "question-answering", item).items[0][0]
        assert (alone.answer, alone.start) == (spans[0].answer, spans[0].start)
        assert alone.score == pytest.approx(spans[0].score, rel=1e-5)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("a", {}, "inputs must be"),
        ({"question": "a"}, {}, "inputs must be"),
        ({"question": "a", "context": 1}, {}, "context"),
        ({"question": "a", "context": "b", "x": 1}, {}, "inputs must be"),
        ([], {}, "empty"),
        ({"question": "", "context": "b"}, {}, "question is empty"),
        ({"question": "a", "context": " "}, {}, "context is empty"),
        ({"question": "a\0", "context": "b"}, {}, "NUL"),
        ({"question": "word " * 60, "context": "b"}, {}, "question has 63 tokens; the model takes 56"),
        ({"question": "a", "context": "b"}, {"max_seq_len": 10}, "question has 4 tokens; the model takes 2"),
        ({"question": "a", "context": "b " * 99}, {"doc_stride": 60}, "doc_stride must be less than 60"),
        ({"question": "a", "context": "b " * 9_000}, {"doc_stride": 59}, "at most 256"),
        ({"question": "a", "context": "b"}, {"top_k": 0}, "top_k"),
        ({"question": "a", "context": "b"}, {"top_k": 1000}, "top_k"),
        ({"question": "a", "context": "b"}, {"max_answer_len": 0}, "max_answer_len"),
    ],
)
def test_refused(runner: Runner, inputs: Any, options: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        runner.plan("qa", "question-answering", inputs, **options)


def test_the_question_can_be_cut(runner: Runner) -> None:
    inputs = {"question": "word " * 60, "context": "b"}
    assert runner.plan("qa", "question-answering", inputs, max_question_len=5).units.tokens == 9


@pytest.mark.parametrize("shape", [(1, 3), (1, 16, 2), (2, 16)])
def test_a_damaged_answer(runner: Runner, shape: Sequence[int]) -> None:
    plan = runner.plan("qa", "question-answering", {"question": QUESTION, "context": "b"})
    tensors = tuple(from_numpy(name, np.zeros(shape, np.float32)) for name in ("start_logits", "end_logits"))
    with pytest.raises(BadUpstream):
        plan.finish([InferenceResult("qa", "1", tensors)])
