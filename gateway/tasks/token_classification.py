"""Token classification: named entities, with the aggregation strategies of Hugging Face's pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np

from gateway.catalog import ModelCard
from gateway.errors import BadUpstream, Invalid
from gateway.settings import Settings
from gateway.tasks import scores
from gateway.tasks.aggregation import Strategy, TokenScores, WordRule, entities_of_groups, entities_of_tokens
from gateway.tasks.answers import Entities, Entity
from gateway.tasks.base import Shared
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.rows import Array
from gateway.tasks.text import Passage
from gateway.tasks.text_task import TextTask
from gateway.types import InferenceResult, Plan


class TokenClassificationOptions(Options, frozen=True):
    """``stride``: tokens that the windows of a long text share; without it a long text loses its end.

    The default strategy is ``simple``, as Hugging Face's inference API has it.
    """

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    ignore_labels: list[str] = msgspec.field(default_factory=lambda: ["O"])
    stride: Annotated[int, msgspec.Meta(ge=0)] | None = None


class TokenClassification(TextTask):
    """Takes a text or a list of texts; answers :class:`Entities`.

    ``word`` of an aggregated entity is the text itself between ``start`` and ``end``; of a single
    token it is the token.
    """

    name: ClassVar[str] = "token-classification"
    serves: ClassVar[frozenset[str]] = frozenset({"token-classification"})

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        self._logits = self.text_rows.output("logits")
        self._word_rule = WordRule.of(self.encoder.tokenizer)

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a text, or one a window of it."""
        chosen = parse_options(TokenClassificationOptions, options)
        if chosen.stride is not None and chosen.aggregation_strategy == "none":
            raise Invalid("stride needs an aggregation_strategy other than none", param="stride")
        items, single = as_list(inputs, self.settings.max_batch_items)
        texts = self.encoder.check_all(items)
        passages = [self.encoder.passage(text, stride=chosen.stride) for text in texts]
        rows = [row for passage in passages for row in passage.rows()]
        self.encoder.check_count(len(rows))
        batch = self.text_rows.batch(rows)

        def finish(results: Sequence[InferenceResult]) -> Entities:
            logits = iter(batch.each(results, self._logits))
            return Entities(
                [
                    self._entities(text, passage, [next(logits) for _ in passage.windows], chosen)
                    for text, passage in zip(texts, passages, strict=True)
                ],
                single,
            )

        return Plan(batch.requests, batch.units, finish)

    def _entities(
        self, text: str, passage: Passage, logits: list[Array], chosen: TokenClassificationOptions
    ) -> list[Entity]:
        found: list[Entity] = []
        for window, window_logits in zip(passage.windows, logits, strict=True):
            tokens = self._scores(passage, window, window_logits)
            if chosen.aggregation_strategy == "none":
                found += entities_of_tokens(text, tokens, chosen.ignore_labels, self._word_rule)
            else:
                strategy: Strategy = chosen.aggregation_strategy
                found += entities_of_groups(text, tokens, strategy, chosen.ignore_labels, self._word_rule)
        return without_overlaps(found) if len(passage.windows) > 1 else found

    def _scores(self, passage: Passage, window: tuple[int, int], logits: Array) -> TokenScores:
        """Scores of the window's tokens, special ones left out."""
        start, stop = window
        if logits.ndim != 2 or logits.shape[0] < passage.begin + stop - start:
            raise BadUpstream("the model did not answer one score a token and class")
        kept = np.flatnonzero(~passage.special[start:stop])
        return TokenScores(
            scores=scores.softmax(scores.finite(logits[passage.begin + kept])),
            positions=passage.begin + kept,
            tokens=[passage.tokens[index] for index in (start + kept).tolist()],
            ids=np.array(passage.ids)[start + kept],
            offsets=passage.offsets[start + kept],
            labels=scores.class_names(self.card.recipe.labels, logits.shape[1]),
        )


def without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of entities that overlap (windows share text) the longest, then the one with the best score."""
    if not entities:
        return entities
    ordered = sorted(entities, key=lambda entity: entity.start)
    kept = [ordered[0]]
    for entity in ordered[1:]:
        last = kept[-1]
        if not last.start <= entity.start < last.end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (last.end - last.start, last.score):
            kept[-1] = entity
    return kept
