"""The recipes that are committed: what the gateway, the documentation and a newcomer rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog import Catalog, ImagePreprocessing, ModelCard, TextPreprocessing
from gateway.tasks.rows import role
from zoo.freshness import scored_sha256

CATALOG = Catalog.load(Path(__file__).parents[2] / "model_repository")
CARDS = list(CATALOG)

TEXT = {"input_ids": ("INT64", (-1,)), "attention_mask": ("INT64", (-1,))}
VECTORS = {"sentence_embedding": ("FP32", (384,)), "token_embeddings": ("FP32", (-1, 384))}
WORDS = {"output_ids": ("INT64", (-1,)), "scores": ("FP32", (1,))}
TENSORS = {
    "identity": ({"INPUT": ("FP32", (64,))}, {"OUTPUT": ("FP32", (64,))}),
    "digits": ({"image": ("UINT8", (28, 28, 1))}, {"logits": ("FP32", (10,))}),
    "topics-zh": (TEXT, {"logits": ("FP32", (10,))}),
    "translate-zh-en": (TEXT, WORDS),
    "translate-en-fr": (TEXT, WORDS),
    "qa": (
        {**TEXT, "token_type_ids": ("INT64", (-1,))},
        {"start_logits": ("FP32", (-1,)), "end_logits": ("FP32", (-1,))},
    ),
    "sentiment": (TEXT, {"logits": ("FP32", (2,))}),
    "entities": (TEXT, {"logits": ("FP32", (-1, 9))}),
    "embeddings": (TEXT, VECTORS),
    "embeddings-int8": (TEXT, VECTORS),
    "imagenet": ({"image": ("UINT8", (224, 224, 3))}, {"logits": ("FP32", (1000,))}),
    "imagenet-torchscript": ({"image": ("UINT8", (224, 224, 3))}, {"logits": ("FP32", (1000,))}),
}


def test_the_starter_models_are_all_there() -> None:
    assert {card.name for card in CARDS} >= set(TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_as_agreed(name: str) -> None:
    recipe = CATALOG.get(name).recipe
    inputs, outputs = TENSORS[name]
    assert {role(spec.name): (spec.datatype, spec.shape) for spec in recipe.inputs} == inputs
    assert {role(spec.name): (spec.datatype, spec.shape) for spec in recipe.outputs} == outputs


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_libtorch_names_carry_their_position(card: ModelCard) -> None:
    for specs in (card.recipe.inputs, card.recipe.outputs):
        for position, spec in enumerate(specs):
            assert spec.name.endswith(f"__{position}") is (card.recipe.format == "torchscript")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_says_what_a_user_must_know(card: ModelCard) -> None:
    recipe = card.recipe
    assert recipe.licence
    assert recipe.notes
    assert recipe.max_batch_size > 1
    if recipe.task is not None:
        assert recipe.golden, "every build is checked on answers"
        assert recipe.evaluations, "every task has a floor"
        assert recipe.preprocessing is not None
    if isinstance(recipe.preprocessing, TextPreprocessing):
        assert recipe.languages
        assert list(recipe.preprocessing.buckets) == sorted(set(recipe.preprocessing.buckets))
        assert recipe.preprocessing.buckets[-1] == recipe.preprocessing.max_length
    if isinstance(recipe.preprocessing, ImagePreprocessing):
        height, width = recipe.preprocessing.crop
        assert recipe.inputs[0].shape[:2] == (height, width)
    if recipe.labels:
        assert len(recipe.labels) == recipe.outputs[0].shape[-1]
        assert len(set(recipe.labels)) == len(recipe.labels)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_measured_scores_hold_their_floors(card: ModelCard) -> None:
    for item in card.recipe.evaluations:
        assert item.value is not None, f"{item.metric} was never measured"
        assert item.value >= item.floor
        assert item.samples
        assert item.date
        assert item.model_sha256 == scored_sha256(card.recipe), (
            f"{item.metric} is of other weights: `tidegate models evaluate {card.name} --data FOLDER` measures it anew"
        )
