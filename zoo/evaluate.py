"""Task scores: a built model file on the validation part of a public data set, through the gateway's own
pre- and post-processing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gateway.catalog import Evaluation, ModelCard, file_sha256, verify_hash
from gateway.settings import Settings
from zoo.errors import EvaluationError
from zoo.freshness import scored_sha256
from zoo.runtime import ModuleRunner, TaskRunner, load_runner
from zoo.sources import load_source
from zoo.training.datasets import TaggedSentence, source_files
from zoo.training.evaluation import accuracy, bleu, entity_f1, load_split, squad_f1_em, topk

CHUNK = 32
"""Inputs of one task call."""

PUBLISHED_PAIRS = {
    "source_sentence": "That is a happy person",
    "sentences": ["That is a happy dog", "That is a very happy person", "Today is a sunny day"],
}
PUBLISHED_COSINES = (0.6946, 0.9429, 0.2569)
"""As the documentation of sentence-transformers/all-MiniLM-L6-v2 has them."""

Advance = Callable[[int, int], None]
"""Told how many samples are done and how many there are."""


@dataclass(frozen=True)
class Measured:
    """Scores by metric, and what they were measured on."""

    values: Mapping[str, float]
    samples: int
    files: tuple[Path, ...] = ()


class Evaluator:
    """Measures one built model."""

    def __init__(self, card: ModelCard, settings: Settings, advance: Advance = lambda _done, _all: None) -> None:
        """Raises ``CatalogError`` for a model that is not built or not the file that was validated."""
        verify_hash(card)
        self._card = card
        self._tasks = TaskRunner(card, load_runner(card.model_file, card.recipe), settings)
        self._settings = settings
        self._advance = advance

    def evaluate(self, data: Path, *, limit: int | None = None) -> list[Evaluation]:
        """The recipe's evaluations with what was measured on the data sets in ``data``.

        ``limit``: only the first samples. Raises :class:`EvaluationError`.
        """
        measure = _MEASURES.get(self._card.name)
        if measure is None or not self._card.recipe.evaluations:
            raise EvaluationError(f"{self._card.name}: no data set is known for it")
        try:
            measured = measure(self, data, limit)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EvaluationError(f"{self._card.name}: {error.filename} is missing") from error
        missing = [item.metric for item in self._card.recipe.evaluations if item.metric not in measured.values]
        if missing:
            raise EvaluationError(f"{self._card.name}: nothing measures {', '.join(missing)}")
        return [
            item.model_copy(
                update={
                    "value": round(measured.values[item.metric], 4),
                    "samples": measured.samples,
                    "sha256": _sha256(measured.files),
                    "model_sha256": scored_sha256(self._card.recipe),
                    "date": datetime.now(timezone.utc).date().isoformat(),
                }
            )
            for item in self._card.recipe.evaluations
        ]

    # --- one method a data set

    def digits(self, data: Path, limit: int | None) -> Measured:
        """MNIST, each image as the PNG that a client would send."""
        images, labels = load_split("digits", data, "validation")
        images, labels = images[:limit], labels[:limit].tolist()
        answers = self._call([_png(image[..., 0]) for image in images])
        predictions = [int(answer[0].label) for answer in answers]
        return Measured({"accuracy": accuracy(predictions, labels)}, len(labels), self._files(data))

    def imagenet(self, data: Path, limit: int | None) -> Measured:
        """Photographs whose file names begin with the number of their class."""
        files = tuple(sorted((data / "imagenet_val").glob("*.JPEG")))[:limit]
        if not files:
            raise EvaluationError(f"{self._card.name}: no photographs in {data / 'imagenet_val'}")
        numbers = {label: number for number, label in enumerate(self._card.recipe.labels)}
        answers = self._call([path.read_bytes() for path in files], {"top_k": 5})
        rankings = [[numbers[label.label] for label in answer] for answer in answers]
        labels = [int(path.name.partition("_")[0]) for path in files]
        values = {"top-1 accuracy": topk(rankings, labels, 1), "top-5 accuracy": topk(rankings, labels, 5)}
        return Measured(values, len(files), files)

    def labels(self, data: Path, limit: int | None) -> Measured:
        """Texts with the number of their label."""
        texts, labels = zip(*load_split(self._card.name, data, "validation")[:limit], strict=True)
        numbers = {label: number for number, label in enumerate(self._card.recipe.labels)}
        predictions = [numbers[answer[0].label] for answer in self._call(texts)]
        return Measured({"accuracy": accuracy(predictions, labels)}, len(texts), self._files(data))

    def translations(self, data: Path, limit: int | None) -> Measured:
        """Pairs of sentences."""
        sources, references = zip(*load_split(self._card.name, data, "validation")[:limit], strict=True)
        found = [answer.text for answer in self._call(sources)]
        return Measured({"BLEU": bleu(found, references)}, len(sources), self._files(data))

    def questions(self, data: Path, limit: int | None) -> Measured:
        """Questions, their contexts and accepted answers."""
        rows = load_split(self._card.name, data, "validation")[:limit]
        answers = self._call([{"question": row.question, "context": row.context} for row in rows])
        predictions = {row.id: answer[0].answer for row, answer in zip(rows, answers, strict=True)}
        accepted = {row.id: [text for text, _ in row.answers] for row in rows}
        f1, exact = squad_f1_em(predictions, accepted)
        return Measured({"F1": f1, "exact match": exact}, len(rows), self._files(data))

    def entities(self, data: Path, limit: int | None) -> Measured:
        """Sentences of words with their tags; a word has the tag of its first token."""
        sentences: Sequence[TaggedSentence] = load_split(self._card.name, data, "validation")[:limit]
        answers = self._call([" ".join(sentence.words) for sentence in sentences], {"aggregation_strategy": "none"})
        predictions = [_word_tags(sentence, answer) for sentence, answer in zip(sentences, answers, strict=True)]
        score = entity_f1(predictions, [sentence.tags for sentence in sentences])
        return Measured({"entity F1": score}, len(sentences), self._files(data))

    def published_cosines(self, _data: Path, _limit: int | None) -> Measured:
        """One minus the largest deviation from the cosines that the model's authors publish."""
        found = self._tasks.call("sentence-similarity", PUBLISHED_PAIRS).scores
        worst = max(abs(a - b) for a, b in zip(found, PUBLISHED_COSINES, strict=True))
        return Measured({"agreement with the published cosines": 1 - worst}, len(found))

    def same_vectors(self, data: Path, limit: int | None) -> Measured:
        """How near the vectors of a quantised model are to those of its source."""
        texts = [text for text, _ in load_split("sentiment", data, "validation")[:limit]]
        source = ModuleRunner(load_source(self._card.recipe).module, self._card.recipe)
        expected = TaskRunner(self._card, source, self._settings)
        cosines: list[float] = []
        for chunk in _chunks(texts):
            options = {"normalize": True}
            pairs = zip(
                self._tasks.call("feature-extraction", chunk, options).vectors,
                expected.call("feature-extraction", chunk, options).vectors,
                strict=True,
            )
            cosines += [float(np.dot(a, b)) for a, b in pairs]
            self._advance(len(cosines), len(texts))
        score = float(np.mean(cosines))
        return Measured({"mean cosine with the fp32 vectors": score}, len(texts), validation_files("sentiment", data))

    # ---

    def _call(self, inputs: Sequence[Any], options: Mapping[str, Any] | None = None) -> list[Any]:
        """The answer of each input."""
        task = self._card.recipe.task
        assert task is not None  # noqa: S101 - a model with evaluations has one
        answers: list[Any] = []
        for chunk in _chunks(inputs):
            answers += self._tasks.call(task, list(chunk), options).items
            self._advance(len(answers), len(inputs))
        return answers

    def _files(self, data: Path) -> tuple[Path, ...]:
        return validation_files(self._card.name, data)


_MEASURES: dict[str, Callable[[Evaluator, Path, int | None], Measured]] = {
    "digits": Evaluator.digits,
    "topics-zh": Evaluator.labels,
    "sentiment": Evaluator.labels,
    "translate-zh-en": Evaluator.translations,
    "translate-en-fr": Evaluator.translations,
    "qa": Evaluator.questions,
    "entities": Evaluator.entities,
    "imagenet": Evaluator.imagenet,
    "imagenet-torchscript": Evaluator.imagenet,
    "embeddings": Evaluator.published_cosines,
    "embeddings-int8": Evaluator.same_vectors,
}
"""The data set of each starter model."""


def validation_files(model: str, data: Path) -> tuple[Path, ...]:
    """Of the files that ``model`` was made from those that its validation part is in."""
    return tuple(path for path in source_files(model, data) if "train" not in path.name)


def below_floor(evaluations: Sequence[Evaluation]) -> list[str]:
    """What to say of every score under its floor."""
    return [
        f"{item.metric} is {item.value}, below the floor of {item.floor:g}"
        for item in evaluations
        if item.value is None or item.value < item.floor
    ]


def _word_tags(sentence: TaggedSentence, entities: Sequence[Any]) -> list[str]:
    labels = {entity.start: entity.entity for entity in entities}
    tags, position = [], 0
    for word in sentence.words:
        tags.append(labels.get(position, "O"))
        position += len(word) + 1
    return tags


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _sha256(files: Sequence[Path]) -> str | None:
    """Of one file its SHA-256, of several the SHA-256 over their hashes in the order of their names."""
    hashes = [file_sha256(path) for path in sorted(files)]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
