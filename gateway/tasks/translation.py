"""Translation: source ids in, target ids out; the search (beam, length, repetition) is inside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from gateway.catalog import ModelCard
from gateway.errors import BadUpstream, Invalid
from gateway.settings import Settings
from gateway.tasks.answers import Translation, Translations
from gateway.tasks.base import Shared
from gateway.tasks.inputs import as_list
from gateway.tasks.options import Options, UnknownOptions, parse_options
from gateway.tasks.scores import finite
from gateway.tasks.text_classification import Truncation, truncates
from gateway.tasks.text_task import TextTask
from gateway.types import InferenceResult, Plan


class TranslationOptions(Options, frozen=True):
    """``generate_parameters`` must be empty: what the model searches with is part of its graph.

    A text that is too long is refused unless ``truncation`` says otherwise: a translation that
    silently ends half-way is worse than none.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None
    truncation: Truncation = False
    clean_up_tokenization_spaces: bool = False
    generate_parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class TranslationTask(TextTask):
    """Takes a text or a list of texts; answers :class:`Translations`."""

    name: ClassVar[str] = "translation"
    serves: ClassVar[frozenset[str]] = frozenset({"translation"})

    def __init__(self, card: ModelCard, settings: Settings, shared: Shared) -> None:
        super().__init__(card, settings, shared)
        self._ids = self.text_rows.output("output_ids")
        self._scores = self.text_rows.outputs.get("scores")

    def plan(self, inputs: Any, options: Mapping[str, Any]) -> Plan:
        """One row a text."""
        chosen = parse_options(TranslationOptions, options)
        if chosen.generate_parameters:
            raise UnknownOptions(chosen.generate_parameters)
        self._check_languages(chosen)
        items, single = as_list(inputs, self.settings.max_batch_items)
        texts = self.encoder.check_all(items)
        batch = self.text_rows.batch(self.encoder.rows(texts, truncate=truncates(chosen.truncation)))

        def finish(results: Sequence[InferenceResult]) -> Translations:
            ids = batch.each(results, self._ids)
            if any(row.ndim != 1 or row.dtype.kind not in "iu" for row in ids):
                raise BadUpstream("the model did not answer token ids")
            decoded = self.encoder.tokenizer.decode_batch([row.tolist() for row in ids], skip_special_tokens=True)
            if chosen.clean_up_tokenization_spaces:
                decoded = [clean_up(text) for text in decoded]
            scores = self._read_scores(batch.each(results, self._scores)) if self._scores else [None] * len(decoded)
            return Translations(
                [Translation(text.strip(), score) for text, score in zip(decoded, scores, strict=True)], single
            )

        return Plan(batch.requests, batch.units, finish)

    def _read_scores(self, rows: Sequence[Any]) -> list[float]:
        if any(row.size != 1 for row in rows):
            raise BadUpstream("the model did not answer one score a translation")
        scores: list[float] = finite(np.array([row.reshape(()) for row in rows], dtype=np.float64)).tolist()
        return scores

    def _check_languages(self, chosen: TranslationOptions) -> None:
        languages = self.card.recipe.languages
        if len(languages) != 2:
            return
        for param, asked, served in (
            ("src_lang", chosen.src_lang, languages[0]),
            ("tgt_lang", chosen.tgt_lang, languages[1]),
        ):
            if asked is not None and primary_language(asked) != primary_language(served):
                raise Invalid(f"{param}: the model translates from {languages[0]} to {languages[1]}", param=param)


def primary_language(code: str) -> str:
    """The language of a code such as ``en``, ``en-GB``, ``en_XX`` or ``eng_Latn``, as two letters where known."""
    head = code.replace("_", "-").partition("-")[0].lower()
    return {"eng": "en", "fra": "fr", "fre": "fr", "zho": "zh", "chi": "zh", "deu": "de", "ger": "de"}.get(head, head)


def clean_up(text: str) -> str:
    """Spaces before punctuation and in English contractions taken out, as Hugging Face's clean-up does."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip() if spaced != " ' " else "'")
    return text
