"""The same numbers as Hugging Face's own pipelines, on small random checkpoints: our pre- and
post-processing around the very model that their pipeline runs.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from gateway.catalog import ModelCard
from gateway.settings import Settings
from gateway.tasks import create_task
from gateway.tasks.answers import Entity
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceRequest, InferenceResult
from tests.gateway.tasks.models import minilm_folder, text_recipe, write_model
from tests.gateway.tasks.test_text import byte_level_bpe, unigram

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning"),
]

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
PLAIN = ["O", "PER", "LOC-GPE", "MISC"]
TEXTS = [
    "John Smith lives in Berlin, and Angela Merkelsson visited Unbelievabletown.",
    "Ünïcödé names: Zoë Kravitz-O'Neill moved to 北京 in 2021!",
    "a",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "supercalifragilisticexpialidocious antidisestablishmentarianism 🙂 end",
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def minilm() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


KINDS = {
    "wordpiece": (minilm, {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}),
    "bpe": (byte_level_bpe, {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}),
    "unigram": (unigram, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}


@cache
def wrapped(kind: str) -> PreTrainedTokenizerFast:
    make, special = KINDS[kind]
    return PreTrainedTokenizerFast(
        tokenizer_object=make(), model_max_length=64, model_input_names=["input_ids", "attention_mask"], **special
    )


def config(tokenizer: PreTrainedTokenizerFast, labels: Sequence[str], **more: Any) -> BertConfig:
    torch.manual_seed(5)
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={v: i for i, v in enumerate(labels)},
        initializer_range=0.8,
        **more,
    )


def card(folder: Path, task: str, tokenizer: PreTrainedTokenizerFast, labels: Sequence[str], **more: Any) -> ModelCard:
    recipe = text_recipe("checkpoint", task, {"logits": [-1]}, labels=list(labels), **more)
    content = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()))
    return write_model(folder, recipe, b"", tokenizer=content)


def ours(card: ModelCard, model: Any, inputs: Any, **options: Any) -> Any:
    """The task's answer, with ``model`` in Triton's place."""

    def run(request: InferenceRequest) -> InferenceResult:
        tensors = {tensor.name: torch.from_numpy(np.array(to_numpy(tensor))) for tensor in request.inputs}
        with torch.inference_mode():
            logits = model(**tensors).logits.numpy()
        return InferenceResult(request.model, "1", (from_numpy("logits", logits),))

    assert card.recipe.task is not None
    plan = create_task(card, card.recipe.task, Settings()).plan(inputs, options)
    return plan.finish([run(request) for request in plan.requests])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "problem"),
    [(["bad", "good", "so so"], None), (["score"], None), (["a", "b", "c"], "multi_label_classification")],
)
def test_text_classification(tmp_path: Path, kind: str, labels: list[str], problem: str | None) -> None:
    tokenizer = wrapped(kind)
    model = BertForSequenceClassification(config(tokenizer, labels, problem_type=problem)).eval()
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer)
    function = "sigmoid" if problem else None
    model_card = card(tmp_path, "text-classification", tokenizer, labels, score_function=function)
    for options in ({}, {"function_to_apply": "none"}, {"function_to_apply": "sigmoid"}, {"top_k": 2}):
        expected = theirs(TEXTS, truncation=True, **{"top_k": None, **options})
        answer = ours(model_card, model, TEXTS, **options)
        for wanted, got in zip(expected, answer.items, strict=True):
            assert [label.label for label in got] == [label["label"] for label in wanted]
            np.testing.assert_allclose(
                [label.score for label in got], [label["score"] for label in wanted], rtol=1e-4, atol=1e-5
            )


def test_pairs(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(wrapped("wordpiece"))
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model = BertForSequenceClassification(config(tokenizer, ["no", "yes"])).eval()
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer)
    inputs = [{"name": name, "datatype": "INT64", "shape": [-1]} for name in tokenizer.model_input_names]
    model_card = card(tmp_path, "text-classification", tokenizer, ["no", "yes"], inputs=inputs)
    pairs = [{"text": "one two", "text_pair": "three"}, {"text": TEXTS[3], "text_pair": TEXTS[0]}]
    expected = theirs(pairs, truncation=True, top_k=None)
    answer = ours(model_card, model, pairs)
    for wanted, got in zip(expected, answer.items, strict=True):
        assert got[0].label == wanted[0]["label"]
        assert got[0].score == pytest.approx(wanted[0]["score"], abs=1e-5)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((strategy, {}) for strategy in ("none", "simple", "first", "average", "max")),
    *((strategy, {"ignore_labels": []}) for strategy in ("none", "first")),
    ("simple", {"ignore_labels": ["PER", "B-PER"]}),
    *((strategy, {"stride": 8}) for strategy in ("simple", "average")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [BIO, PLAIN], ids=["bio", "plain"])
def test_token_classification(tmp_path: Path, kind: str, labels: list[str]) -> None:
    tokenizer = wrapped(kind)
    model = BertForTokenClassification(config(tokenizer, labels)).eval()
    theirs = pipeline("token-classification", model=model, tokenizer=tokenizer)
    model_card = card(tmp_path, "token-classification", tokenizer, labels)
    found = 0
    for strategy, more in OPTIONS:
        if kind == "bpe" and "stride" in more:
            continue  # tokenizers gives a lone space in front of a window another offset than inside of one
        answer = ours(model_card, model, TEXTS, aggregation_strategy=strategy, **more)
        for text, got in zip(TEXTS, answer.items, strict=True):
            compare(strategy, text, got, theirs(text, aggregation_strategy=strategy, **more))
        found += sum(map(len, answer.items))
    assert found


def compare(strategy: str, text: str, got: list[Entity], expected: list[dict[str, Any]]) -> None:
    keys = ("entity", "index") if strategy == "none" else ("entity_group",)
    assert [(e.start, e.end, *(getattr(e, key) for key in keys)) for e in got] == [
        (e["start"], e["end"], *(e[key] for key in keys)) for e in expected
    ]
    np.testing.assert_allclose([e.score for e in got], [e["score"] for e in expected], rtol=1e-3, atol=1e-4)
    for mine, other in zip(got, expected, strict=True):
        assert mine.word == (other["word"] if strategy == "none" else text[mine.start : mine.end])


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (50, 90)])
def test_image_classification(tmp_path: Path, size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    labels = ["cat", "dog", "owl"]
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
            id2label=dict(enumerate(labels)),
            label2id={v: i for i, v in enumerate(labels)},
            initializer_range=1.0,
        )
    ).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, resample=2)
    recipe = {
        "name": "checkpoint",
        "task": "image-classification",
        "labels": labels,
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [32, 32, 3]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [3]}],
        "preprocessing": {"kind": "image", "crop": [32, 32], "interpolation": "bilinear"},
    }
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    expected = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=3)

    def run(request: InferenceRequest) -> InferenceResult:
        pixels = torch.from_numpy(np.array(to_numpy(request.inputs[0]))).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            logits = model(pixel_values=(pixels / 255 - 0.5) / 0.5).logits.numpy()
        return InferenceResult(request.model, "1", (from_numpy("logits", logits),))

    plan = create_task(write_model(tmp_path, recipe, b""), "image-classification", Settings()).plan(
        buffer.getvalue(), {"top_k": 3}
    )
    got = plan.finish([run(request) for request in plan.requests]).items[0]
    assert [label.label for label in got] == [label["label"] for label in expected]
    np.testing.assert_allclose([label.score for label in got], [label["score"] for label in expected], atol=0.01)
