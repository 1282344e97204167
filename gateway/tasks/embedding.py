"""Sentence vectors: what feature extraction, sentence similarity and zero-shot classification share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.catalog import ModelCard
from gateway.errors import BadUpstream
from gateway.settings import Settings
from gateway.tasks.answers import FloatArray
from gateway.tasks.base import Shared
from gateway.tasks.rows import Batch, Row
from gateway.tasks.scores import finite
from gateway.tasks.text_task import TextTask
from gateway.types import InferenceResult


class EmbeddingTask(TextTask):
    """A task on a model that answers ``sentence_embedding`` (pooled, not normalised), or only ``token_embeddings``,
    which are then averaged over a text's tokens here.
    """

    serves = frozenset({"feature-extraction"})

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        self._pooled = self.text_rows.outputs.get("sentence_embedding")
        self._tokens = self.text_rows.outputs.get("token_embeddings")
        if self._pooled is None and self._tokens is None:
            raise ValueError(f"model {card.name}: no output named sentence_embedding or token_embeddings")
        size = next(spec.shape[-1] for spec in card.recipe.outputs if spec.name in {self._pooled, self._tokens})
        self.dimensions = size if size > 0 else None
        """Of a vector; None if the recipe does not say."""

    def sentence_batch(self, rows: Sequence[Row]) -> Batch:
        """Requests that ask for what :meth:`vectors` reads and nothing more."""
        return self.text_rows.batch(rows, (self._pooled or self._tokens or "",))

    def token_batch(self, rows: Sequence[Row]) -> Batch | None:
        """Requests for a vector a token; None if the model answers none."""
        return self.text_rows.batch(rows, (self._tokens,)) if self._tokens is not None else None

    def vectors(self, batch: Batch, rows: Sequence[Row], results: Sequence[InferenceResult]) -> FloatArray:
        """float32 ``[rows, dimensions]``, not normalised."""
        if self._pooled is not None:
            pooled = batch.fixed(results, self._pooled)
        else:
            pooled = np.stack([matrix.mean(axis=0) for matrix in self.matrices(batch, rows, results)])
        if pooled.ndim != 2:
            raise BadUpstream("the model did not answer one vector a text")
        return finite(pooled.astype(np.float32, copy=False))

    def matrices(self, batch: Batch, rows: Sequence[Row], results: Sequence[InferenceResult]) -> list[FloatArray]:
        """Of each row float32 ``[tokens, dimensions]``, padding cut off."""
        each = batch.each(results, self._tokens or "")
        return [
            finite(matrix[: len(row.ids)].astype(np.float32, copy=False))
            for matrix, row in zip(each, rows, strict=True)
        ]
