"""What `bench gpu` asks Triton for, and what it says where there is nothing to ask."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.configs import read_config
from tidegate.commands.bench import app

CONFIG = """name: "m" backend: "onnxruntime" max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ] output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


@pytest.mark.parametrize("group", ["", "instance_group [ { count: 2 kind: KIND_CPU } ]"])
def test_a_copy_asks_for_instances_on_the_gpu(group: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "m").mkdir(parents=True)
    (source / "m" / "config.pbtxt").write_text(CONFIG + group)
    copied = gpu.repository(source, ["m"], tmp_path / "copy")
    (found,) = read_config(copied / "m" / "config.pbtxt").instance_group
    assert found.kind == found.KIND_GPU
    assert found.count == (2 if group else 1)
    assert (source / "m" / "config.pbtxt").read_text() == CONFIG + group


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = CliRunner().invoke(app, ["gpu"])
    assert done.exit_code == 1
    assert "no CUDA GPU here" in done.output
    assert len(done.output.strip().splitlines()) == 1
