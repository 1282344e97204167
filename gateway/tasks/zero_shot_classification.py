"""Zero-shot classification over sentence embeddings: how near a text is to each label's hypothesis.

Not natural language inference: a bi-encoder's cosine of the text and the hypothesis ("This text is
about sports."). Scores are a softmax of the cosines over ``TEMPERATURE``, or, with ``multi_label``,
each label's logistic function of its distance from ``THRESHOLD``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gateway.errors import Invalid
from gateway.tasks.answers import Labels
from gateway.tasks.embedding import EmbeddingTask
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, parse_options
from gateway.tasks.scores import best_labels, normalise, sigmoid, softmax
from gateway.tasks.text import LONG_TEXT
from gateway.tasks.text_classification import Truncation, truncates
from gateway.tasks.text_task import characters
from gateway.types import InferenceResult, Plan

TEMPERATURE = 0.05
"""One over the scale (20) of the contrastive loss that sentence-transformers trains with."""
THRESHOLD = 0.2
"""Cosine at which a label is as likely as not when labels do not exclude each other."""


class ZeroShotClassificationOptions(Options, frozen=True):
    """``hypothesis_template`` holds one ``{}``; the recipe's own stands in for it."""

    candidate_labels: list[str] | str | None = None
    hypothesis_template: str | None = None
    multi_label: bool = False
    truncation: Truncation = True


class ZeroShotClassification(EmbeddingTask):
    """Takes a text or a list of texts, and the option ``candidate_labels``; answers :class:`Labels`."""

    name: ClassVar[str] = "zero-shot-classification"

    def is_long(self, inputs: Any, options: Mapping[str, Any] | None = None) -> bool:
        """Labels are tokenised too."""
        asked = options or {}
        labels, template = asked.get("candidate_labels"), asked.get("hypothesis_template")
        return characters(inputs) + characters(labels) + characters(template) > LONG_TEXT

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a text and one a label: labels are encoded once, however many texts there are."""
        chosen = parse_options(ZeroShotClassificationOptions, options)
        items, single = as_list(inputs, self.settings.max_batch_items)
        texts = self.encoder.check_all(items)
        labels = self._labels(chosen.candidate_labels)
        template = chosen.hypothesis_template or self.encoder.preprocessing.hypothesis_template
        self.encoder.check_count(len(texts) + len(labels))
        self.encoder.check(template, "hypothesis_template")
        if template.count("{}") != 1:
            raise Invalid("hypothesis_template must hold {} once, where the label goes", param="hypothesis_template")
        self.encoder.check_total([template] * len(labels), "hypothesis_template")  # before it is written so often
        hypotheses = [template.replace("{}", label) for label in labels]
        self.encoder.check_all(hypotheses, "candidate_labels")
        truncate = truncates(chosen.truncation)
        rows = self.encoder.rows(texts, truncate=truncate) + self.encoder.rows(
            hypotheses, truncate=truncate, param="candidate_labels"
        )
        batch = self.sentence_batch(rows)

        def finish(results: Sequence[InferenceResult]) -> Labels:
            vectors = normalise(self.vectors(batch, rows, results))
            cosines = vectors[: len(texts)] @ vectors[len(texts) :].T
            if chosen.multi_label:
                scores = sigmoid((cosines - THRESHOLD) / TEMPERATURE)
            else:
                scores = softmax(cosines / TEMPERATURE)
            return Labels(best_labels(scores, labels, None), single)

        return Plan(batch.requests, batch.units, finish)

    def _labels(self, candidates: list[str] | str | None) -> list[str]:
        given = candidates.split(",") if isinstance(candidates, str) else candidates or []
        labels = [label.strip() for label in given]
        if not labels or not all(labels):
            raise Invalid("candidate_labels must name at least one label", param="candidate_labels")
        if len(set(labels)) != len(labels):
            raise Invalid("candidate_labels names a label twice", param="candidate_labels")
        return labels
