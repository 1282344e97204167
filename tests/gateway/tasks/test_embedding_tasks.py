"""Feature extraction, similarity, zero-shot: numbers that can be computed by hand from the tiny model's table."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.catalog import Catalog
from gateway.errors import BadUpstream, Invalid
from gateway.tasks.zero_shot_classification import TEMPERATURE, THRESHOLD
from gateway.triton.tensors import from_numpy
from gateway.types import InferenceResult, Units
from tests.gateway.tasks.models import WIDTH, Runner, embedding_model, table, text_recipe, write_model

HELLO = [101, 7592, 102]
WORLD = [101, 7592, 2088, 102]


def mean(ids: list[int]) -> np.ndarray:
    return table(WIDTH, 1)[ids].mean(axis=0)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def extract(runner: Runner, inputs: Any, **options: Any) -> Any:
    return runner.call("embeddings", "feature-extraction", inputs, **options)


class TestFeatureExtraction:
    def test_vectors(self, runner: Runner) -> None:
        answer = extract(runner, ["hello", "hello world"])
        np.testing.assert_allclose(answer.vectors, [unit(mean(HELLO)), unit(mean(WORLD))], rtol=1e-5)
        assert answer.tokens == [3, 4]
        raw = extract(runner, "hello", normalize=False)
        np.testing.assert_allclose(raw.vectors[0], mean(HELLO), rtol=1e-5)
        assert raw.single

    def test_dimensions_are_normalised_again(self, runner: Runner) -> None:
        np.testing.assert_allclose(extract(runner, "hello", dimensions=4).vectors[0], unit(mean(HELLO)[:4]), rtol=1e-5)
        np.testing.assert_allclose(
            extract(runner, "hello", dimensions=4, normalize=False).vectors[0], mean(HELLO)[:4], rtol=1e-5
        )

    def test_token_ids(self, runner: Runner) -> None:
        for ids in ([7592], HELLO):
            np.testing.assert_allclose(extract(runner, ids).vectors[0], unit(mean(HELLO)), rtol=1e-5)
        assert extract(runner, [[7592], [7592, 2088]]).tokens == [3, 4]
        assert extract(runner, [7592] * 100).tokens == [64]

    def test_tokens_one_by_one(self, runner: Runner) -> None:
        answer = extract(runner, ["hello", "hello world"], token_embeddings=True)
        for matrix, ids in zip(answer.items, (HELLO, WORLD), strict=True):
            np.testing.assert_allclose(matrix, table(WIDTH, 1)[ids], rtol=1e-6)

    def test_the_vectors_of_one_answer_are_limited(self, runner: Runner) -> None:
        with pytest.raises(Invalid, match="at most 4096 vectors"):
            runner.plan("embeddings", "feature-extraction", ["hello " * 100] * 65, token_embeddings=True)

    def test_prompt(self, runner: Runner) -> None:
        with_prompt = extract(runner, "hello", prompt_name="query")
        np.testing.assert_array_equal(with_prompt.vectors, extract(runner, "query: hello").vectors)

    def test_only_the_wanted_output_is_asked_for(self, runner: Runner) -> None:
        assert runner.plan("embeddings", "feature-extraction", "a").requests[0].outputs == ("sentence_embedding",)
        plan = runner.plan("embeddings", "feature-extraction", "a", token_embeddings=True)
        assert plan.requests[0].outputs == ("token_embeddings",)

    @pytest.mark.parametrize(
        ("inputs", "options", "message"),
        [
            ("a", {"dimensions": WIDTH + 1}, "the model has 16"),
            ("a", {"dimensions": 0}, "dimensions"),
            ("a", {"prompt_name": "x"}, "it has: query"),
            ([1, 2], {"prompt_name": "query"}, "not for token ids"),
            ([1, 30_522], {}, "token ids"),
            ([1, -1], {}, "token ids"),
            ([1, True], {}, "token ids"),
            ([1, "a"], {}, "token ids"),
            ([[1], "a"], {}, "must be a text"),
            ([[]], {}, "empty"),
            ([True], {}, "must be a text"),
            ([1.5], {}, "must be a text"),
            ("a", {"truncation_direction": "middle"}, "truncation_direction"),
            ("hello " * 99, {"truncate": False}, "101 tokens"),
            ([7592] * 99, {"truncate": False}, "101 tokens"),
            ("a", {"token_embeddings": True, "dimensions": 2}, "dimensions"),
        ],
    )
    def test_refused(self, runner: Runner, inputs: Any, options: Any, message: str) -> None:
        with pytest.raises(Invalid, match=message):
            runner.plan("embeddings", "feature-extraction", inputs, **options)

    def test_a_model_with_token_embeddings_only_is_averaged_here(self, tmp_path: Path) -> None:
        recipe = text_recipe("bare", "feature-extraction", {"token_embeddings": [-1, WIDTH]})
        write_model(tmp_path, recipe, embedding_model(table(WIDTH, 1)))
        bare = Runner(Catalog.load(tmp_path))
        answer = bare.call("bare", "feature-extraction", ["hello", "hello world"], normalize=False)
        np.testing.assert_allclose(answer.vectors, [mean(HELLO), mean(WORLD)], rtol=1e-5)

    def test_a_vector_of_zeros_and_one_of_nan(self, runner: Runner) -> None:
        plan = runner.plan("embeddings", "feature-extraction", "a")
        zeros = from_numpy("sentence_embedding", np.zeros((1, WIDTH), np.float32))
        assert not plan.finish([InferenceResult("embeddings", "1", (zeros,))]).vectors.any()
        broken = from_numpy("sentence_embedding", np.full((1, WIDTH), np.inf, np.float32))
        with pytest.raises(BadUpstream):
            plan.finish([InferenceResult("embeddings", "1", (broken,))])


class TestSimilarity:
    def test_cosines(self, runner: Runner) -> None:
        inputs = {"source_sentence": "hello", "sentences": ["hello world", "hello"]}
        answer = runner.call("embeddings", "sentence-similarity", inputs)
        np.testing.assert_allclose(answer.scores, [unit(mean(HELLO)) @ unit(mean(WORLD)), 1], rtol=1e-5)
        assert max(answer.scores) <= 1

    @pytest.mark.parametrize(
        "inputs",
        [
            "a",
            {},
            {"source_sentence": "a"},
            {"source_sentence": "a", "sentences": []},
            {"source_sentence": "a", "sentences": "b"},
            {"source_sentence": 1, "sentences": ["a"]},
            {"source_sentence": "a", "sentences": [1]},
            {"source_sentence": "a", "sentences": ["b"], "x": 1},
            {"source_sentence": "a", "sentences": ["b"] * 256},
        ],
    )
    def test_refused(self, runner: Runner, inputs: Any) -> None:
        with pytest.raises(Invalid):
            runner.plan("embeddings", "sentence-similarity", inputs)


class TestZeroShot:
    def test_scores(self, runner: Runner) -> None:
        vectors = extract(runner, ["hello", "a dog.", "a cat."]).vectors
        cosines = vectors[1:] @ vectors[0]
        options = {"candidate_labels": ["dog", "cat"], "hypothesis_template": "a {}."}
        answer = runner.call("embeddings", "zero-shot-classification", "hello", **options).items[0]
        expected = np.exp(cosines / TEMPERATURE) / np.exp(cosines / TEMPERATURE).sum()
        assert {label.label: pytest.approx(label.score, rel=1e-4) for label in answer} == dict(
            zip(["dog", "cat"], expected.tolist(), strict=True)
        )
        several = runner.call("embeddings", "zero-shot-classification", "hello", multi_label=True, **options).items[0]
        expected = 1 / (1 + np.exp(-(cosines - THRESHOLD) / TEMPERATURE))
        assert {label.label: pytest.approx(label.score, rel=1e-4) for label in several} == dict(
            zip(["dog", "cat"], expected.tolist(), strict=True)
        )

    def test_labels_are_encoded_once_for_all_texts(self, runner: Runner) -> None:
        plan = runner.plan("embeddings", "zero-shot-classification", ["a", "b", "c"], candidate_labels="x, y")
        assert plan.units.rows == 5

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"candidate_labels": []},
            {"candidate_labels": [""]},
            {"candidate_labels": ["a", "a"]},
            {"candidate_labels": [1]},
            {"candidate_labels": ["a"], "hypothesis_template": "no place"},
            {"candidate_labels": ["a\0"]},
            {"candidate_labels": ["a"], "hypothesis_template": "{} {}"},
            {"candidate_labels": [str(n) for n in range(256)]},
        ],
    )
    def test_refused(self, runner: Runner, options: Any) -> None:
        with pytest.raises(Invalid):
            runner.plan("embeddings", "zero-shot-classification", "a", **options)

    def test_labels_are_tokenised_where_long_texts_are(self, runner: Runner) -> None:
        task = runner.task("embeddings", "zero-shot-classification")
        long = "hello " * 2_000
        assert not task.is_long("a")
        assert not task.is_long("a", {"candidate_labels": ["a"], "hypothesis_template": None})
        for options in ({"candidate_labels": [long]}, {"candidate_labels": long}, {"hypothesis_template": long + "{}"}):
            assert task.is_long("a", options)
        assert task.is_long(long, {"candidate_labels": ["a"]})

    def test_a_long_template_is_not_written_for_many_labels(self, runner: Runner) -> None:
        labels = [str(number) for number in range(255)]
        tracemalloc.start()
        try:
            for template in ("a" * 199_000 + "{}", "a" * 300_000 + "{}"):
                with pytest.raises(Invalid, match="hypothesis_template"):
                    runner.plan(
                        "embeddings", "zero-shot-classification", "a",
                        candidate_labels=labels, hypothesis_template=template,
                    )  # fmt: skip
            with pytest.raises(Invalid, match="rows"):
                runner.plan(
                    "embeddings", "zero-shot-classification", "a",
                    candidate_labels=[str(number) for number in range(1_000)], hypothesis_template="{}",
                )  # fmt: skip
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 5 * 2**20


class TestTranslation:
    def test_detokenised(self, runner: Runner) -> None:
        answer = runner.call("translate", "translation", ["hello there", "good bye"])
        assert [item.text for item in answer.items] == ["hello there", "good bye"]
        assert all(item.score is not None for item in answer.items)

    @pytest.mark.parametrize(
        ("source", "target"), [("zh", "en"), ("zh-CN", "en_XX"), ("zho_Hans", "eng_Latn"), (None, "EN")]
    )
    def test_languages(self, runner: Runner, source: Any, target: Any) -> None:
        assert runner.plan("translate", "translation", "a", src_lang=source, tgt_lang=target).units == Units(3, 0, 1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"src_lang": "fr"}, "from zh to en"),
            ({"tgt_lang": "fr"}, "from zh to en"),
            ({"generate_parameters": {"num_beams": 4}}, "num_beams"),
            ({"truncation": "x"}, "truncation"),
        ],
    )
    def test_refused(self, runner: Runner, options: Any, message: str) -> None:
        with pytest.raises(Invalid, match=message):
            runner.plan("translate", "translation", "a", **options)

    def test_a_long_text_is_refused_unless_it_may_be_cut(self, runner: Runner) -> None:
        with pytest.raises(Invalid, match="102 tokens"):
            runner.plan("translate", "translation", "hello " * 100)
        plan = runner.plan("translate", "translation", "hello " * 100, truncation="longest_first")
        assert plan.units.tokens == 64
        assert runner.plan("translate", "translation", "hello", generate_parameters={}).units.rows == 1

    def test_clean_up(self, runner: Runner) -> None:
        plan = runner.plan("translate", "translation", "a", clean_up_tokenization_spaces=True)
        ids = from_numpy("output_ids__0", np.array([[7592, 1010, 2088, 999, 102, 0]]))
        scores = from_numpy("scores__1", np.zeros((1, 1), np.float32))
        assert plan.finish([InferenceResult("translate", "1", (ids, scores))]).items[0].text == "hello, world!"

    def test_a_damaged_answer(self, runner: Runner) -> None:
        plan = runner.plan("translate", "translation", "a")
        ids = from_numpy("output_ids__0", np.array([[1]]))
        floats = from_numpy("output_ids__0", np.array([[1.5]], np.float32))
        scores = from_numpy("scores__1", np.full((1, 1), np.nan, np.float32))
        good = from_numpy("scores__1", np.zeros((1, 1), np.float32))
        for tensors in ((ids, scores), (floats, good), (ids, from_numpy("scores__1", np.zeros((1, 2), np.float32)))):
            with pytest.raises(BadUpstream):
                plan.finish([InferenceResult("translate", "1", tensors)])
