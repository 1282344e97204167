"""What a backend reads from a model's configuration, without a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from embedded.backends.common.config import ConfigError, ModelSpec, TensorSpec, default_intra_op_threads
from embedded.backends.pytorch.modes import execution_mode


def read(folder: Path, *, kind: str = "CPU", **config: Any) -> ModelSpec:
    (folder / "2").mkdir(exist_ok=True)
    (folder / "2" / "model.onnx").touch()
    tensor = {"name": "X", "data_type": "TYPE_FP32", "dims": ["-1", "3"]}
    model = {"name": "m", "max_batch_size": 4, "input": [tensor], "output": [tensor], **config}
    arguments = {
        "model_config": json.dumps(model),
        "model_repository": str(folder),
        "model_version": "2",
        "model_instance_kind": kind,
        "model_instance_device_id": "1",
    }
    return ModelSpec.read(arguments, "model.onnx")


def parameters(**values: str) -> dict[str, Any]:
    return {key: {"string_value": value} for key, value in values.items()}


def test_a_configuration_is_read(tmp_path: Path) -> None:
    spec = read(tmp_path, optimization={"graph": {"level": -1}})
    assert spec.inputs == (TensorSpec("X", "FP32", (-1, 3)),)
    assert spec.file == tmp_path / "2" / "model.onnx"
    assert spec.batched
    assert spec.graph_level == -1
    assert spec.cuda_device is None
    assert read(tmp_path, kind="GPU").cuda_device == 1
    assert not read(tmp_path, max_batch_size=0).batched
    assert spec.instances == 1
    groups = [{"count": 2, "kind": "KIND_CPU"}, {"kind": "KIND_CPU"}]
    assert read(tmp_path, instance_group=groups).instances == 3


def test_instances_on_a_gpu_leave_the_cpus_to_the_others(tmp_path: Path) -> None:
    on_gpus = {"count": 4, "kind": "KIND_GPU"}
    assert read(tmp_path, instance_group=[on_gpus, {"count": 2, "kind": "KIND_CPU"}]).instances == 2
    assert read(tmp_path, kind="GPU", instance_group=[on_gpus]).instances == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2/other.onnx is missing"):
        read(tmp_path, default_model_filename="other.onnx")


def test_numbers(tmp_path: Path) -> None:
    spec = read(tmp_path, parameters=parameters(two="2", zero="0", negative="-1", word="x"))
    assert spec.integer("two", 7) == 2
    assert spec.integer("zero", 7) == 7
    assert spec.integer("absent", 7) == 7
    for bad in ("negative", "word"):
        with pytest.raises(ConfigError, match=f"parameter {bad} of model 'm'"):
            spec.integer(bad, 7)


def test_flags(tmp_path: Path) -> None:
    spec = read(tmp_path, parameters=parameters(yes="True", no="0", bad="maybe"))
    assert spec.flag("yes", default=False)
    assert not spec.flag("no", default=True)
    assert spec.flag("absent", default=True)
    with pytest.raises(ConfigError, match="'maybe', not true or false"):
        spec.flag("bad", default=True)


def test_default_threads_leave_room_for_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_intra_op_threads() == len(os.sched_getaffinity(0))
    assert default_intra_op_threads(share=2) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert [default_intra_op_threads(share=share, cpus=8) for share in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_intra_op_threads(share=2, cpus=8) == 3


@pytest.mark.parametrize(("disabled", "optimised"), [("true", False), ("false", True)])
def test_the_optimisations_of_the_jit_can_be_disabled(tmp_path: Path, disabled: str, optimised: bool) -> None:
    spec = read(tmp_path, parameters=parameters(DISABLE_OPTIMIZED_EXECUTION=disabled))
    with execution_mode(spec)():
        assert torch._C._get_graph_executor_optimize() is optimised
    assert torch._C._get_graph_executor_optimize()
