"""Text classification: sentiment, topics, cross-encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from gateway.catalog import ModelCard
from gateway.errors import BadUpstream, Invalid
from gateway.settings import Settings
from gateway.tasks import scores
from gateway.tasks.answers import Labels
from gateway.tasks.base import Shared
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.rows import Row
from gateway.tasks.scores import ScoreFunction
from gateway.tasks.text_task import TextTask
from gateway.types import InferenceResult, Plan

Truncation = bool | Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


def truncates(truncation: Truncation) -> bool:
    """Whether a text that is too long is cut."""
    return truncation not in (False, "do_not_truncate")


class TextClassificationOptions(Options, frozen=True):
    """``top_k``: how many classes (None: all). ``truncation`` false: a text that is too long is refused."""

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    function_to_apply: ScoreFunction | None = None
    truncation: Truncation = True


class TextClassification(TextTask):
    """Takes a text, a pair ``{"text", "text_pair"}``, or a list of them; answers :class:`Labels`.

    A text longer than the model takes loses its end, unless ``truncation`` says otherwise.
    """

    name: ClassVar[str] = "text-classification"
    serves: ClassVar[frozenset[str]] = frozenset({"text-classification"})

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        self._logits = self.text_rows.output("logits")

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a text or pair."""
        chosen = parse_options(TextClassificationOptions, options)
        items, single = as_list(inputs, self.settings.max_batch_items)
        batch = self.text_rows.batch(self._rows(items, truncates(chosen.truncation)))

        def finish(results: Sequence[InferenceResult]) -> Labels:
            logits = batch.fixed(results, self._logits)
            if logits.ndim != 2:
                raise BadUpstream("the model did not answer one score a class")
            classes = logits.shape[1]
            function = chosen.function_to_apply or scores.default_function(self.card.recipe.score_function, classes)
            names = scores.class_names(self.card.recipe.labels, classes)
            return Labels(scores.best_labels(scores.apply(function, logits), names, chosen.top_k), single)

        return Plan(batch.requests, batch.units, finish)

    def _rows(self, items: list[Any], truncate: bool) -> list[Row]:
        if all(isinstance(item, str) for item in items):
            return self.encoder.rows(self.encoder.check_all(items), truncate=truncate)
        pairs = [self._pair(item) for item in items]
        self.encoder.check_total([text for pair in pairs for text in pair if text is not None])
        return [
            self.encoder.rows([text], truncate=truncate)[0]
            if other is None
            else self.encoder.pair(text, other, truncate=truncate)
            for text, other in pairs
        ]

    def _pair(self, item: Any) -> tuple[str, str | None]:
        if isinstance(item, str):
            return self.encoder.check(item), None
        if not isinstance(item, dict) or not {"text"} <= item.keys() <= {"text", "text_pair"}:
            raise Invalid('inputs must be texts, or pairs {"text": ..., "text_pair": ...}', param="inputs")
        other = item.get("text_pair")
        return self.encoder.check(item["text"], "text"), None if other is None else self.encoder.check(
            other, "text_pair"
        )
