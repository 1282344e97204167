"""Exports of modules of a few lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from zoo.errors import ExportError
from zoo.export import export
from zoo.runtime import OnnxRunner, TorchRunner

ONNX = {
    "format": "onnx",
    "inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [64]}],
    "outputs": [{"name": "OUTPUT", "datatype": "FP32", "shape": [64]}],
}
SAMPLES = {"INPUT": torch.arange(128, dtype=torch.float32).reshape(2, 64)}


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(64, 64)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(value))


class Countdown(nn.Module):
    """Its number of steps depends on the data."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        while bool((value > 1).any()):
            value = value / 2
        return value


class Refuses(nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        raise ValueError("this module cannot run\nat all")


def test_onnx_is_the_same_every_time_and_says_nothing_of_this_machine(make_recipe) -> None:
    recipe = make_recipe(**ONNX)
    first, second = (export(Dense().eval(), recipe, SAMPLES) for _ in range(2))
    assert first == second
    assert str(Path(__file__).parent).encode() not in first
    assert str(Path.home()).encode() not in first
    model = onnx.load_from_string(first)
    assert model.opset_import[0].version == 18
    assert model.ir_version <= 10
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["INPUT", "OUTPUT"]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_batch_is_dynamic(make_recipe, rows: int) -> None:
    module = Dense().eval()
    runner = OnnxRunner(export(module, make_recipe(**ONNX), SAMPLES))
    value = np.random.default_rng(1).normal(size=(rows, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(value)).numpy()
    np.testing.assert_allclose(runner.run({"INPUT": value})["OUTPUT"], expected, atol=1e-5)


def test_int8_is_smaller_and_near(make_recipe) -> None:
    module = Dense().eval()
    plain = export(module, make_recipe(**ONNX), SAMPLES)
    small = export(module, make_recipe(**ONNX, quantisation="dynamic-int8"), SAMPLES)
    assert len(small) < len(plain) / 2
    value = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    exact, near = (OnnxRunner(content).run({"INPUT": value})["OUTPUT"] for content in (plain, small))
    assert 0 < np.abs(exact - near).max() < 0.05


def test_scripting_keeps_loops_that_tracing_would_unroll(make_recipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        format="torchscript",
        inputs=[{"name": "value__0", "datatype": "FP32", "shape": [64]}],
        outputs=[{"name": "half__0", "datatype": "FP32", "shape": [64]}],
    )
    path = tmp_path / "model.pt"
    path.write_bytes(export(Countdown().eval(), recipe, {"value__0": torch.full((1, 64), 2.0)}, scripted=True))
    runner = TorchRunner(path, recipe)
    assert runner.run({"value__0": np.full((3, 64), 1024, np.float32)})["half__0"].max() == 1.0


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_failure_is_one_line(make_recipe, kind: str) -> None:
    with pytest.raises(ExportError) as caught:
        export(Refuses().eval(), make_recipe(**{**ONNX, "format": kind}), SAMPLES)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"identity: the export to {kind} failed: ")


def test_a_model_too_large_for_one_onnx_file_is_refused(make_recipe) -> None:
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.empty(2**20, 600, device="meta"))
    with pytest.raises(ExportError, match="less than 2"):
        export(module, make_recipe(**ONNX), SAMPLES)
