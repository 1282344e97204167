"""Numeric parity, on modules of one line and runners that go wrong in one way each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from zoo.errors import ValidationError
from zoo.runtime import ModuleRunner
from zoo.validate import check_parity, sample_inputs

TOKENS = {
    "inputs": [
        {"name": "input_ids", "datatype": "INT64", "shape": [-1]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [-1]},
    ],
    "outputs": [{"name": "vectors", "datatype": "FP32", "shape": [-1, 3]}],
    "preprocessing": {"kind": "text", "pad_id": 9},
    "parity": {"atol": 1e-4, "batch_sizes": [1, 2, 64], "lengths": [4, 6]},
}


class Double(nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * 2


class Vectors(nn.Module):
    """Three numbers a token; at padding, whatever the seed says."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        values = torch.stack((input_ids, input_ids + 1, input_ids + 2), dim=-1).float()
        return values + self.noise * (attention_mask == 0).unsqueeze(-1)


class Changed:
    """A runner whose output is changed on the way."""

    def __init__(self, runner, change) -> None:
        self.runner = runner
        self.change = change

    def run(self, inputs):
        return self.change(dict(self.runner.run(inputs)))


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({f"w{number}": number for number in range(40)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_equal_models_agree(make_recipe) -> None:
    recipe = make_recipe(parity={"atol": 0.0, "batch_sizes": [1, 2, 5]})
    result = check_parity(Double(), ModuleRunner(Double(), recipe), recipe)
    assert (result.max_abs_error, result.cases) == (0.0, 3)
    assert result.min_cosine == pytest.approx(1.0)


def test_batches_larger_than_the_model_takes_are_left_out(make_recipe) -> None:
    recipe = make_recipe(max_batch_size=2, parity={"batch_sizes": [1, 2, 5]})
    assert check_parity(Double(), ModuleRunner(Double(), recipe), recipe).cases == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda out: {"OUTPUT__0": out["OUTPUT__0"] + np.float32(0.01)}, "off by 0.01"),
        (lambda out: {}, "has no output OUTPUT__0"),
        (lambda out: {"OUTPUT__0": out["OUTPUT__0"].astype(np.float64)}, "is float64, the recipe says FP32"),
        (lambda out: {"OUTPUT__0": out["OUTPUT__0"][:, :5]}, "has shape [1, 5], not [1, 64]"),
        (lambda out: {"OUTPUT__0": out["OUTPUT__0"] * np.float32(np.nan)}, "not finite"),
    ],
)
def test_what_a_broken_export_does_is_named(make_recipe, change, complaint: str) -> None:
    recipe = make_recipe(parity={"atol": 1e-3})
    with pytest.raises(ValidationError) as caught:
        check_parity(Double(), Changed(ModuleRunner(Double(), recipe), change), recipe)
    assert str(caught.value).startswith("identity: batch 1: ")
    assert complaint in str(caught.value)


def test_an_export_that_fails_is_one_line(make_recipe) -> None:
    def explode(outputs):
        raise RuntimeError("first line\nsecond line")

    recipe = make_recipe()
    with pytest.raises(ValidationError, match="the exported model fails: first line$"):
        check_parity(Double(), Changed(ModuleRunner(Double(), recipe), explode), recipe)


def test_a_shape_other_than_the_recipes_is_refused(make_recipe) -> None:
    recipe = make_recipe(outputs=[{"name": "OUTPUT__0", "datatype": "FP32", "shape": [32]}])
    with pytest.raises(ValidationError, match=r"the recipe says \[32\]"):
        check_parity(Double(), ModuleRunner(Double(), recipe), recipe)


def test_padded_positions_do_not_count(make_recipe, tokenizer) -> None:
    recipe = make_recipe(**TOKENS)
    noisy = ModuleRunner(Vectors(noise=100.0), recipe)
    assert check_parity(Vectors(noise=0.0), noisy, recipe, tokenizer).max_abs_error == 0.0


def test_a_cosine_bounds_what_quantisation_may_do(make_recipe, tokenizer) -> None:
    recipe = make_recipe(**{**TOKENS, "parity": {"cosine": 0.99, "batch_sizes": [2], "lengths": [4]}})
    close = Changed(ModuleRunner(Vectors(0.0), recipe), lambda out: {"vectors": out["vectors"] * np.float32(1.5)})
    result = check_parity(Vectors(0.0), close, recipe, tokenizer)
    assert result.max_abs_error > 1
    assert result.min_cosine == pytest.approx(1.0)
    turned = Changed(ModuleRunner(Vectors(0.0), recipe), lambda out: {"vectors": out["vectors"][..., ::-1].copy()})
    with pytest.raises(ValidationError, match="cosine"):
        check_parity(Vectors(0.0), turned, recipe, tokenizer)


def test_integers_must_be_equal(make_recipe, tokenizer) -> None:
    class Ids(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return input_ids

    outputs = [{"name": "ids", "datatype": "INT64", "shape": [-1]}]
    recipe = make_recipe(**{**TOKENS, "outputs": outputs})
    assert check_parity(Ids(), ModuleRunner(Ids(), recipe), recipe, tokenizer).max_abs_error == 0.0
    wrong = Changed(ModuleRunner(Ids(), recipe), lambda out: {"ids": out["ids"] + 1})
    with pytest.raises(ValidationError, match="off by inf"):
        check_parity(Ids(), wrong, recipe, tokenizer)


def test_inputs_are_the_same_every_time_and_padded(make_recipe, tokenizer) -> None:
    recipe = make_recipe(**TOKENS)
    first, second = (sample_inputs(recipe, 3, 6, tokenizer) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    mask = first["attention_mask"]
    assert mask.sum(axis=1).tolist() == [6, 3, 6]
    assert (first["input_ids"][mask == 0] == 9).all()


def test_ids_can_be_taken_from_a_text(make_recipe, tokenizer) -> None:
    recipe = make_recipe(**{**TOKENS, "parity": {"text": "w3 w4 w5", "batch_sizes": [2], "lengths": [5]}})
    ids = sample_inputs(recipe, 1, 5, tokenizer)["input_ids"][0]
    assert set(ids.tolist()) == {3, 4, 5}
    with pytest.raises(ValidationError, match="no tokenizer"):
        sample_inputs(recipe, 1, 5)
