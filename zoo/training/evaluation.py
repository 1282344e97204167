"""Metrics of the starter models; pure functions of predictions and references."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from zoo.training.datasets import (
    Split,
    read_digits,
    read_entities,
    read_multi30k,
    read_questions,
    read_sentiment,
    read_tatoeba,
    read_topics,
)

Span = tuple[str, int, int]
"""An entity: its type, first word and last word."""


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Share of predictions equal to their label."""
    hits = sum(a == b for a, b in zip(predictions, labels, strict=True))
    return hits / len(labels)


def topk(rankings: Sequence[Sequence[int]], labels: Sequence[int], k: int) -> float:
    """Share of labels among the first k of their ranking (best first)."""
    hits = sum(label in ranking[:k] for ranking, label in zip(rankings, labels, strict=True))
    return hits / len(labels)


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu with its 13a tokenisation, 0 to 100."""
    return float(BLEU(tokenize="13a").corpus_score(translations, [references]).score)


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and extra spaces, as SQuAD compares answers."""
    text = "".join(mark for mark in text.lower() if mark not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of two answers."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    return 2 * common / (len(predicted) + len(expected))


def squad_f1_em(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> tuple[float, float]:
    """F1 and exact match, 0 to 100, each question against its best answer (SQuAD 1.1).

    A question without a prediction scores 0.
    """
    f1 = exact = 0.0
    for question, accepted in answers.items():
        prediction = predictions.get(question, "")
        f1 += max(token_f1(prediction, answer) for answer in accepted)
        exact += max(float(normalize_answer(prediction) == normalize_answer(answer)) for answer in accepted)
    return 100 * f1 / len(answers), 100 * exact / len(answers)


def entity_spans(tags: Sequence[str]) -> set[Span]:
    """Entities of one sentence tagged in IOB1 or BIO."""
    spans: set[Span] = set()
    start, kind = 0, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, new = tag.partition("-")
        if kind and (prefix in ("B", "O") or new != kind):
            spans.add((kind, start, index - 1))
            kind = ""
        if not kind and prefix != "O":
            start, kind = index, new
    return spans


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Micro F1 over entities, 0 to 1; one counts where type, first and last word are right."""
    hits = predicted = expected = 0
    for tags, gold in zip(predictions, references, strict=True):
        found, wanted = entity_spans(tags), entity_spans(gold)
        hits += len(found & wanted)
        predicted += len(found)
        expected += len(wanted)
    return 2 * hits / max(1, predicted + expected)


def load_split(model: str, data_folder: Path, split: Split) -> Any:
    """The split of the data set that a model is trained or validated on.

    See zoo.training.datasets for what each reader returns. Raises KeyError for a model
    without a data set.
    """
    readers = {
        "digits": read_digits,
        "topics-zh": read_topics,
        "translate-zh-en": read_tatoeba,
        "translate-en-fr": read_multi30k,
        "qa": read_questions,
        "sentiment": read_sentiment,
        "entities": read_entities,
    }
    return readers[model](data_folder, split)
