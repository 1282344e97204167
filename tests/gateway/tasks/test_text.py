"""Checks, truncation and windows, with MiniLM's real tokenizer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from gateway.errors import Invalid, NotFound
from gateway.settings import Settings
from gateway.tasks import create_task, task_names
from gateway.tasks.options import UnknownOptions
from gateway.tasks.text import TextEncoder, Tokenizers, window_count
from tests.gateway.tasks.models import (
    Runner,
    minilm_folder,
    sequence_model,
    table,
    text_recipe,
    write_model,
)


@pytest.fixture(scope="module")
def encoder(runner: Runner) -> TextEncoder:
    card = runner.catalog.get("sentiment")
    assert card is not None
    return TextEncoder(card, Settings(), Tokenizers())


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    """The same tokenizer with its own truncation."""
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


TEXTS = [
    "A short text.",
    "word " * 500,
    "Ünïcödé and 中文字符 with emoji 🙂 " * 40,
    "x" * 20_000,
    "a" + " " * 5_000 + "b",
    ("supercalifragilistic" * 10 + " ") * 100,
    "中文" * 2_000,
    "tab\tand\nnewline\r\n" * 300,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("direction", ["left", "right"])
def test_truncation_equals_the_tokenizers_own(
    encoder: TextEncoder, reference: Tokenizer, text: str, direction: Any
) -> None:
    reference.enable_truncation(64, direction=direction)
    assert list(encoder.rows([text], direction=direction)[0].ids) == reference.encode(text).ids


@pytest.mark.parametrize(
    ("first", "second"), [("a b", "c"), ("word " * 100, "c d"), ("a", "word " * 100), ("w " * 90, "v " * 91)]
)
def test_pairs_equal_the_tokenizers_own(encoder: TextEncoder, reference: Tokenizer, first: str, second: str) -> None:
    reference.enable_truncation(64, strategy="longest_first")
    expected = reference.encode(first, second)
    row = encoder.pair(first, second, truncate=True)
    assert list(row.ids) == expected.ids
    assert list(row.type_ids or ()) == expected.type_ids


def test_a_pair_of_long_texts_takes_no_more_than_its_tokens(encoder: TextEncoder) -> None:
    begin = time.process_time()
    assert len(encoder.pair("a " * 100_000, "b " * 99_999, truncate=True).ids) == 64
    assert time.process_time() - begin < 5
    with pytest.raises(Invalid, match="200002 tokens"):
        encoder.pair("a " * 100_000, "b " * 99_999, truncate=False)
    for pair in (("", "b"), ("a", " ")):
        with pytest.raises(Invalid, match="empty"):
            encoder.pair(*pair, truncate=True)


def test_a_text_that_may_not_be_cut_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(Invalid, match="inputs has 102 tokens; the model takes 64"):
        encoder.rows(["hello " * 100], truncate=False)
    assert len(encoder.rows(["hello " * 62], truncate=False)[0].ids) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\0b", "NUL"),
        ("a\ud800b", "surrogate"),
        ("\udc00", "surrogate"),
        ("", "empty"),
        (" \n\t", "empty"),
        ("\u200b\u200e", "empty"),
        ("x" * 200_001, "200001 characters"),
        (7, "inputs must be"),
        (None, "inputs must be"),
        (b"a", "inputs must be"),
        (["a"], "inputs must be"),
        ({"text": 1}, "must be a text"),
    ],
)
def test_refused(runner: Runner, text: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        runner.plan("sentiment", "text-classification", [text])


def test_limits_of_a_call(runner: Runner) -> None:
    with pytest.raises(Invalid, match="257 items; at most 256"):
        runner.plan("sentiment", "text-classification", ["a"] * 257)
    with pytest.raises(Invalid, match="in one call"):
        runner.plan("sentiment", "text-classification", ["x" * 200_000] * 11)
    with pytest.raises(Invalid, match="empty"):
        runner.plan("sentiment", "text-classification", [])


def test_the_longest_accepted_texts_take_no_time(runner: Runner) -> None:
    begin = time.process_time()
    for text in ("x" * 200_000, "x " * 100_000, "中" * 200_000, "🙂" * 200_000, "\u0301" * 200_000):
        runner.plan("sentiment", "text-classification", text if text[0] != "\u0301" else "a" + text[:-1])
    assert time.process_time() - begin < 10


def test_long_calls_go_to_a_thread(runner: Runner) -> None:
    task = runner.task("sentiment", "text-classification")
    assert not task.is_long("short")
    assert task.is_long("x" * 10_000)
    assert task.is_long(["x" * 5_000] * 2)
    assert task.is_long([{"text": "x" * 5_000, "text_pair": "y" * 5_000}])
    assert runner.task("qa", "question-answering").is_long({"question": "a", "context": "x" * 10_000})
    assert runner.task("embeddings", "sentence-similarity").is_long(
        {"source_sentence": "a", "sentences": ["x" * 5_000] * 2}
    )
    assert runner.task("embeddings", "feature-extraction").is_long([[1] * 5_000] * 2)
    assert runner.task("colours", "image-classification").is_long(b"")


def test_unknown_options_are_named(runner: Runner) -> None:
    with pytest.raises(UnknownOptions, match=r"\['nucleus', 'x'\]") as error:
        runner.plan("sentiment", "text-classification", "a", x=1, nucleus=2, top_k=1)
    assert error.value.param == "nucleus"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": "1"}, "top_k: expected `int | null`, got `str`"),
        ({"top_k": 0}, "top_k: expected `int` >= 1"),
        ({"function_to_apply": "relu"}, "function_to_apply: invalid enum value 'relu'"),
        ({"top_k": True}, "top_k"),
        ({"truncation": "maybe"}, "truncation"),
    ],
)
def test_options_are_checked(runner: Runner, options: Any, message: str) -> None:
    with pytest.raises(Invalid) as error:
        runner.plan("sentiment", "text-classification", "a", **options)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("tokens", "room", "overlap", "expected"), [(5, 5, 2, 1), (6, 5, 0, 2), (6, 5, 4, 2), (11, 5, 2, 3), (12, 5, 2, 4)]
)
def test_window_count(tokens: int, room: int, overlap: int, expected: int, encoder: TextEncoder) -> None:
    assert window_count(tokens, room, overlap) == expected
    encoding = encoder.tokenizer.encode("hello " * tokens, add_special_tokens=False)
    encoding.truncate(room, stride=overlap)
    windows = encoder.windows(tokens, room, overlap, "inputs")
    assert [stop - start for start, stop in windows] == [len(part.ids) for part in (encoding, *encoding.overflowing)]
    assert len(windows) == expected


def test_models_with_one_tokenizer_share_it(runner: Runner) -> None:
    tokenizers = Tokenizers()
    cards = [runner.catalog.get(name) for name in ("sentiment", "entities")]
    first, second = (TextEncoder(card, Settings(), tokenizers) for card in cards if card is not None)
    assert first.tokenizer is second.tokenizer


def test_tasks_of_a_model(runner: Runner) -> None:
    names = {card.name: task_names(card) for card in runner.catalog}
    assert names["embeddings"] == ("feature-extraction", "sentence-similarity", "zero-shot-classification")
    assert names["sentiment"] == ("text-classification",)
    assert names["identity"] == ()
    card = runner.catalog.get("sentiment")
    assert card is not None
    with pytest.raises(NotFound):
        create_task(card, "translation", Settings())


def test_a_recipe_that_cannot_work_is_refused_at_construction(tmp_path: Path) -> None:
    wrong_output = text_recipe("a", "text-classification", {"scores": [2]})
    odd_input = text_recipe("b", "text-classification", {"logits": [2]})
    odd_input["inputs"] = [*odd_input["inputs"], {"name": "pixels", "datatype": "FP32", "shape": [3]}]
    for recipe in (wrong_output, odd_input):
        card = write_model(tmp_path, recipe, b"")
        with pytest.raises(ValueError, match=card.name):
            create_task(card, "text-classification", Settings())
    broken = write_model(tmp_path, text_recipe("c", "text-classification", {"logits": [2]}), b"", tokenizer="{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        create_task(broken, "text-classification", Settings())


def byte_level_bpe() -> Tokenizer:
    """RoBERTa's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<pad>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS[:3], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    """XLM-R's and Marian's kind: no special token in front."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS[:3], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def no_specials() -> Tokenizer:
    """A bare BPE."""
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level_bpe, unigram, no_specials])
def test_other_kinds_of_tokenizer(tmp_path: Path, make: Any) -> None:
    reference = make()
    recipe = text_recipe("other", "text-classification", {"logits": [2]})
    card = write_model(
        tmp_path, recipe, sequence_model(table(2, 1)), tokenizer=json.dumps(json.loads(reference.to_str()))
    )
    encoder = TextEncoder(card, Settings(), Tokenizers())
    for text in TEXTS[:4]:
        for direction in ("left", "right"):
            reference.enable_truncation(64, direction=direction)
            assert list(encoder.rows([text], direction=direction)[0].ids) == reference.encode(text).ids  # type: ignore[arg-type]
    reference.no_truncation()
    ids = reference.encode("A short text.").ids
    bare = reference.encode("A short text.", add_special_tokens=False).ids
    for given in (ids, bare):
        assert list(encoder.row_of_ids(given, truncate=False, direction="right", param="inputs").ids) == ids
