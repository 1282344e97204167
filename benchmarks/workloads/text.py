"""Text tasks in the Hugging Face, OpenAI and TEI dialects."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np
from typing_extensions import override

from benchmarks.workloads.base import Payload, Workload, WrongAnswer
from benchmarks.workloads.texts import Lengths, compose, lines

POOL = 2048
"""Texts composed beforehand; each request takes one and a running number, which makes it unique."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _json(body: bytes) -> Any:
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        raise WrongAnswer(f"not JSON: {error}") from error


class _TextTask(Workload):
    """``POST /hf/models/{model}`` with ``{"inputs": …}``."""

    file = ""
    lengths = Lengths(18, 0.6, 4, 150)
    separator = " "
    path_template = "/hf/models/{model}"

    def __init__(self, seed: int, model: str | None = None, path: str | None = None) -> None:
        super().__init__(seed)
        self.model = model or self.model
        self._path = path or self.path_template.format(model=self.model)
        self._goldens = self.read_goldens()
        self._texts = self.read_texts()

    @property
    def goldens(self) -> int:
        return len(self._goldens)

    def read_goldens(self) -> list[tuple[Any, Any]]:
        """Golden inputs, each with its expected answer or None."""
        return [(line, None) for line in lines(self.file)]

    def read_texts(self) -> list[str]:
        """The pool that unique inputs are made from."""
        sources = [str(text) for text, _ in self._goldens]
        return compose(sources, self.lengths, self.seed, POOL, self.separator)

    def body(self, inputs: Any) -> bytes:
        """The request body of one input."""
        return _encode({"inputs": inputs})

    def vary(self, text: str, index: int) -> Any:
        """``text`` made unlike every other request's input."""
        return f"{text} ({self.seed % 1000}.{index})"

    def golden(self, number: int) -> Payload:
        inputs, expected = self._goldens[number]
        return Payload(self._path, self.body(inputs), golden=number, expected=expected)

    def unique(self, index: int) -> Payload:
        return Payload(self._path, self.body(self.vary(self._texts[index % POOL], index)))


class Classification(_TextTask):
    """Labels with scores: ``[[{"label", "score"}, …]]``."""

    classes = 2

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        answer = _json(body)
        try:
            best = answer[0][0]
            label, score = best["label"], float(best["score"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise WrongAnswer(f"not [[{{label, score}}]]: {body[:120]!r}") from error
        if not 1 / self.classes - 1e-6 <= score <= 1 + 1e-6:
            raise WrongAnswer(f"the best of {self.classes} labels has score {score}")
        return label, score

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        label, score = answer
        if isinstance(reference, str):
            return bool(label.lower().startswith(reference))
        return bool(reference[0] == label and abs(reference[1] - score) < 0.02)


class Sentiment(Classification):
    """English reviews whose sentiment is beyond doubt, and unique texts composed of them."""

    name = "sentiment"
    model = "sentiment"
    file = "reviews_en.txt"

    @override
    def read_goldens(self) -> list[tuple[Any, Any]]:
        pairs = (line.split("\t", 1) for line in lines(self.file))
        return [(text, label) for label, text in pairs]


class TopicsZh(Classification):
    """Chinese product reviews, ten kinds of product."""

    name = "topics-zh"
    model = "topics-zh"
    file = "reviews_zh.txt"
    classes = 10
    separator = ""
    lengths = Lengths(40, 0.7, 8, 200)


class QuestionAnswering(_TextTask):
    """A question and its context, the context lengthened with sentences that do not hold the answer."""

    name = "qa"
    model = "qa"
    file = "questions_en.tsv"
    lengths = Lengths(60, 0.6, 10, 180)

    @override
    def read_goldens(self) -> list[tuple[Any, Any]]:
        rows = (line.split("\t") for line in lines(self.file))
        return [({"question": question, "context": context}, None) for question, context, _ in rows]

    @override
    def read_texts(self) -> list[str]:
        return compose(lines("sentences_en.txt"), self.lengths, self.seed, POOL)

    @override
    def vary(self, text: str, index: int) -> Any:
        base = self._goldens[index % len(self._goldens)][0]
        return {"question": base["question"], "context": f"{base['context']} {text} ({self.seed % 1000}.{index})"}

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        answer = _json(body)
        if isinstance(answer, list):
            answer = answer[0] if answer else {}
        try:
            text, score = answer["answer"], float(answer["score"])
            start, end = int(answer["start"]), int(answer["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise WrongAnswer(f"not {{answer, score, start, end}}: {body[:120]!r}") from error
        context = _decode(payload.body)["inputs"]["context"]
        if context[start:end] != text:
            raise WrongAnswer(f"characters {start} to {end} of the context are not {text!r}")
        return text, score

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(reference[0] == answer[0])


class Entities(_TextTask):
    """Named entities, aggregated to words."""

    name = "entities"
    model = "entities"
    file = "news_en.txt"
    lengths = Lengths(20, 0.5, 6, 100)

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        answer = _json(body)
        text = _decode(payload.body)["inputs"]
        try:
            found = tuple((e.get("entity_group") or e["entity"], e["start"], e["end"]) for e in answer)
        except (KeyError, TypeError, AttributeError) as error:
            raise WrongAnswer(f"not [{{entity, start, end}}]: {body[:120]!r}") from error
        if any(not 0 <= start < end <= len(text) for _, start, end in found):
            raise WrongAnswer("an entity lies outside its text")
        return found

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(reference == answer)


class Translation(_TextTask):
    """``[{"translation_text"}]``."""

    lengths = Lengths(11, 0.4, 4, 30)

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        try:
            text = _json(body)[0]["translation_text"]
        except (KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"not [{{translation_text}}]: {body[:120]!r}") from error
        if not isinstance(text, str) or (not text.strip() and payload.golden is not None):
            raise WrongAnswer("an empty translation")
        return text

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(reference == answer)


class TranslateZhEn(Translation):
    """Short Chinese sentences."""

    name = "translate-zh-en"
    model = "translate-zh-en"
    file = "sentences_zh.txt"
    separator = ""


class TranslateEnFr(Translation):
    """Picture captions, the domain the model was trained on."""

    name = "translate-en-fr"
    model = "translate-en-fr"
    file = "captions_en.txt"


class Embeddings(_TextTask):
    """Sentence vectors of texts from a few words to a page, in Hugging Face's dialect."""

    name = "embeddings"
    model = "embeddings"
    file = "sentences_en.txt"
    lengths = Lengths(28, 0.9, 3, 170)
    dimensions = 384

    def vector(self, body: bytes) -> Any:
        """The one vector in an answer."""
        return _json(body)

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        try:
            vector = np.asarray(self.vector(body), dtype=np.float32).reshape(-1)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise WrongAnswer(f"not a vector: {body[:80]!r}") from error
        if vector.shape != (self.dimensions,) or not np.isfinite(vector).all():
            raise WrongAnswer(f"a vector of {vector.size} numbers, {self.dimensions} expected")
        norm = float(np.linalg.norm(vector))
        if norm < 1e-3:
            raise WrongAnswer("a vector of zeros")
        return vector / norm

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(float(reference @ answer) > self.least_cosine)

    least_cosine = 0.9999


class EmbeddingsInt8(Embeddings):
    """The quantised model: activations are scaled per batch, so neighbours move the last digits."""

    name = "embeddings-int8"
    model = "embeddings-int8"
    least_cosine = 0.98


class EmbeddingsOpenAI(Embeddings):
    """``POST /v1/embeddings`` with base64 answers, as the Python SDK asks for them."""

    name = "embeddings-openai"
    path_template = "/v1/embeddings"

    @override
    def body(self, inputs: Any) -> bytes:
        return _encode({"model": self.model, "input": inputs, "encoding_format": "base64"})

    @override
    def vector(self, body: bytes) -> Any:
        value = _json(body)["data"][0]["embedding"]
        return np.frombuffer(base64.b64decode(value), dtype="<f4") if isinstance(value, str) else value


class EmbeddingsTei(Embeddings):
    """``POST /tei/{model}/embed``."""

    name = "embeddings-tei"
    path_template = "/tei/{model}/embed"

    @override
    def vector(self, body: bytes) -> Any:
        return _json(body)[0]


class PredictTei(Sentiment):
    """``POST /tei/{model}/predict``: ``[{"label", "score"}, …]``."""

    name = "predict-tei"
    path_template = "/tei/{model}/predict"

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        return super().parse(payload, b"[" + body + b"]")


class SentenceSimilarity(_TextTask):
    """A sentence and four others: their cosines, in the order of the others; a sentence is most like itself."""

    name = "sentence-similarity"
    model = "embeddings"
    file = "sentences_en.txt"
    lengths = Lengths(12, 0.6, 3, 60)
    others = 4

    @override
    def read_goldens(self) -> list[tuple[Any, Any]]:
        found = lines(self.file)[:16]
        return [(self._asked(text, found, number), None) for number, text in enumerate(found)]

    @override
    def read_texts(self) -> list[str]:
        return compose(lines(self.file), self.lengths, self.seed, POOL)

    @override
    def vary(self, text: str, index: int) -> Any:
        return self._asked(f"{text} ({self.seed % 1000}.{index})", self._texts, index)

    def _asked(self, text: str, others: list[str], index: int) -> dict[str, Any]:
        """``text`` itself comes first among the sentences."""
        found = [others[(index * 7 + step) % len(others)] for step in range(1, self.others)]
        return {"source_sentence": text, "sentences": [text, *found]}

    def scores(self, body: bytes) -> list[float]:
        """The scores of an answer, in the order of the sentences."""
        return [float(score) for score in _json(body)]

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        try:
            scores = self.scores(body)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise WrongAnswer(f"no scores: {body[:120]!r}") from error
        if len(scores) != self.others or not all(-1.001 <= score <= 1.001 for score in scores):
            raise WrongAnswer(f"scores {scores}; {self.others} between -1 and 1 are expected")
        if scores[0] < max(scores) - 1e-3:
            raise WrongAnswer(f"another sentence is more like the first than it is itself: {scores}")
        return np.asarray(scores)

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(np.allclose(reference, answer, atol=1e-3))


class SimilarityTei(SentenceSimilarity):
    """``POST /tei/{model}/similarity``."""

    name = "similarity-tei"
    path_template = "/tei/{model}/similarity"


class RerankTei(SentenceSimilarity):
    """``POST /tei/{model}/rerank``: ``[{"index", "score"}, …]``, best first."""

    name = "rerank-tei"
    path_template = "/tei/{model}/rerank"

    @override
    def body(self, inputs: Any) -> bytes:
        return _encode({"query": inputs["source_sentence"], "texts": inputs["sentences"]})

    @override
    def scores(self, body: bytes) -> list[float]:
        answer = _json(body)
        ranked = [float(item["score"]) for item in answer]
        if ranked != sorted(ranked, reverse=True):
            raise WrongAnswer(f"not best first: {ranked}")
        return [score for _, score in sorted((int(item["index"]), float(item["score"])) for item in answer)]


class ZeroShot(Classification):
    """Sentences and four labels: labels with scores, best first."""

    name = "zero-shot-classification"
    model = "embeddings"
    file = "sentences_en.txt"
    lengths = Lengths(18, 0.6, 4, 100)
    classes = 4
    labels = ("weather", "science", "travel", "food")

    @override
    def body(self, inputs: Any) -> bytes:
        return _encode({"inputs": inputs, "parameters": {"candidate_labels": list(self.labels)}})

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        label, score = super().parse(payload, b"[" + body + b"]")
        if label not in self.labels:
            raise WrongAnswer(f"{label!r} is none of the labels")
        return label, score
