"""Feature extraction: sentence embeddings, or one vector a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from gateway.errors import Invalid
from gateway.tasks.answers import Embeddings, TokenEmbeddings
from gateway.tasks.embedding import EmbeddingTask
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.rows import Row
from gateway.tasks.scores import normalise
from gateway.tasks.text import Direction
from gateway.types import InferenceResult, Plan

MAX_TOKEN_VECTORS = 4096
"""Vectors of one answer when there is one a token: 384 numbers each make some 30 MB of JSON."""


class FeatureExtractionOptions(Options, frozen=True):
    """As text-embeddings-inference and sentence-transformers have them.

    ``dimensions`` keeps the first of them (Matryoshka) and normalises again. ``encoding_format`` is
    accepted for the clients that send it; it is the dialect that encodes. ``token_embeddings`` asks
    for a vector a token.
    """

    normalize: bool = True
    truncate: bool = True
    truncation_direction: Direction = "right"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    prompt_name: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    token_embeddings: bool = False


class FeatureExtraction(EmbeddingTask):
    """Takes a text, token ids, or a list of either; answers :class:`Embeddings` or :class:`TokenEmbeddings`."""

    name: ClassVar[str] = "feature-extraction"

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a text."""
        chosen = parse_options(FeatureExtractionOptions, options)
        if chosen.dimensions is not None and self.dimensions is not None:
            self._check_dimensions(chosen.dimensions, self.dimensions)
        rows, single = self.rows(inputs, chosen)
        if chosen.token_embeddings:
            return self._token_plan(rows, single, chosen)
        batch = self.sentence_batch(rows)

        def finish(results: Sequence[InferenceResult]) -> Embeddings:
            vectors = self.vectors(batch, rows, results)
            if chosen.dimensions is not None:
                self._check_dimensions(chosen.dimensions, vectors.shape[1])
                vectors = vectors[:, : chosen.dimensions]
            if chosen.normalize:
                vectors = normalise(vectors)
            return Embeddings(vectors, [len(row.ids) for row in rows], single)

        return Plan(batch.requests, batch.units, finish)

    def _check_dimensions(self, wanted: int, there: int) -> None:
        if wanted > there:
            raise Invalid(f"dimensions: the model has {there}, {wanted} were asked for", param="dimensions")

    def _token_plan(self, rows: list[Row], single: bool, chosen: FeatureExtractionOptions) -> Plan:
        batch = self.token_batch(rows)
        if batch is None:
            raise Invalid("the model answers no vector a token", param="token_embeddings")
        if chosen.dimensions is not None:
            raise Invalid("dimensions are for sentence embeddings", param="dimensions")
        if batch.units.tokens > MAX_TOKEN_VECTORS:
            raise Invalid(
                f"inputs has {batch.units.tokens} tokens; at most {MAX_TOKEN_VECTORS} vectors are answered in one call",
                param="inputs",
            )

        def finish(results: Sequence[InferenceResult]) -> TokenEmbeddings:
            return TokenEmbeddings(self.matrices(batch, rows, results), single)

        return Plan(batch.requests, batch.units, finish)

    def rows(self, inputs: Any, chosen: FeatureExtractionOptions) -> tuple[list[Row], bool]:
        """Rows of texts or token ids, and whether there was one."""
        if isinstance(inputs, list) and inputs and type(inputs[0]) is int:
            return [self._row_of_ids(inputs, chosen)], True
        items, single = as_list(inputs, self.settings.max_batch_items)
        if all(isinstance(item, list) for item in items):
            self.encoder.check_total(items)
            return [self._row_of_ids(item, chosen) for item in items], single
        texts = self.encoder.check_all(items)
        if chosen.prompt_name is not None:
            prompt = self.encoder.prompt(chosen.prompt_name)
            texts = [prompt + text for text in texts]
        return (
            self.encoder.rows(texts, truncate=chosen.truncate, direction=chosen.truncation_direction),
            single,
        )

    def _row_of_ids(self, ids: list[Any], chosen: FeatureExtractionOptions) -> Row:
        if chosen.prompt_name is not None:
            raise Invalid("prompt_name is for texts, not for token ids", param="prompt_name")
        return self.encoder.row_of_ids(
            ids, truncate=chosen.truncate, direction=chosen.truncation_direction, param="inputs"
        )
