"""Sentence similarity: the cosine of a sentence with each of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.errors import Invalid
from gateway.tasks.answers import Similarities
from gateway.tasks.embedding import EmbeddingTask
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.scores import normalise
from gateway.tasks.text import Direction
from gateway.types import InferenceResult, Plan


class SentenceSimilarityOptions(Options, frozen=True):
    """As text-embeddings-inference has them."""

    truncate: bool = True
    truncation_direction: Direction = "right"


class SentenceSimilarity(EmbeddingTask):
    """Takes ``{"source_sentence": ..., "sentences": [...]}``; answers :class:`Similarities`."""

    name: ClassVar[str] = "sentence-similarity"

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a sentence, the source first."""
        chosen = parse_options(SentenceSimilarityOptions, options)
        if not isinstance(inputs, dict) or inputs.keys() != {"source_sentence", "sentences"}:
            raise Invalid('inputs must be {"source_sentence": ..., "sentences": [...]}', param="inputs")
        sentences, single = as_list(inputs["sentences"], self.settings.max_batch_items, "sentences")
        if single:
            raise Invalid("sentences must be a list of texts", param="sentences")
        self.encoder.check(inputs["source_sentence"], "source_sentence")
        texts = self.encoder.check_all([inputs["source_sentence"], *sentences], "sentences")
        rows = self.encoder.rows(
            texts, truncate=chosen.truncate, direction=chosen.truncation_direction, param="sentences"
        )
        batch = self.sentence_batch(rows)

        def finish(results: Sequence[InferenceResult]) -> Similarities:
            vectors = normalise(self.vectors(batch, rows, results))
            return Similarities((vectors[1:] @ vectors[0]).clip(-1.0, 1.0).tolist())

        return Plan(batch.requests, batch.units, finish)
