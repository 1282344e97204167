"""What `bench gpu` asks Triton for, whom it believes, and what it says where there is nothing to measure."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.configs import read_config
from tests.benchmarks.samples import measurement, results_of
from tidegate.commands.bench import app

CONFIG = """name: "m" backend: "onnxruntime" max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ] output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
SMI = """#!{python}
import itertools, sys, time
if any("name" in argument for argument in sys.argv):
    print("A card, 1.0, 80000 MiB")
elif "-lms" not in sys.argv:
    print("0, 100, 0")
else:
    for number in itertools.count():
        print("0, {memory}, {utilisation}", flush=True)
        print("[N/A], not supported", flush=True)
        time.sleep(0.02)
"""
"""Stands in for nvidia-smi: a card that goes from 100 MiB to what the test says."""


@pytest.mark.parametrize("group", ["", "instance_group [ { count: 2 kind: KIND_CPU } ]"])
def test_a_copy_asks_for_instances_on_the_gpu(group: str, tmp_path: Path) -> None:
    source = _model(tmp_path / "source", group)
    copied = gpu.repository(source, ["m"], tmp_path / "copy")
    (found,) = read_config(copied / "m" / "config.pbtxt").instance_group
    assert found.kind == found.KIND_GPU
    assert found.count == (2 if group else 1)
    assert (source / "m" / "config.pbtxt").read_text() == CONFIG + group


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, wherever this runs
    done = CliRunner().invoke(app, ["gpu"])
    assert done.exit_code == 1
    assert "no CUDA GPU here" in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_a_gpu_that_the_library_cannot_use_is_none(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The libraries that are installed here know the CPU alone, and would answer from there.
    _card(tmp_path, monkeypatch, 1000, 50)
    assert gpu.require() == ["A card, 1.0, 80000 MiB"]
    with pytest.raises(gpu.NoGpuError, match=f"no CUDA GPU here for {backend}.* would run on the CPU"):
        gpu.require("identity-has-no-library", backend)


@pytest.mark.parametrize(
    ("memory", "utilisation", "worked"), [(1000, 35, True), (1000, 0, False), (110, 35, False), (100, 0, False)]
)
def test_a_gpu_that_does_not_move_makes_a_run_invalid(
    memory: int, utilisation: int, worked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _card(tmp_path, monkeypatch, memory, utilisation)
    with gpu.watching(every_ms=20) as activity:
        deadline = time.monotonic() + 30
        while not activity.memory and time.monotonic() < deadline:
            time.sleep(0.01)
    results = results_of(measurement(8, 100.0), measurement(32, 200.0))
    gpu.judge(results, activity)
    assert [item.valid for item in results.measurements] == [worked, worked]
    for item in results.measurements:
        assert f"grew by {memory - 100} MiB, utilisation came to {utilisation} %" in item.notes[-1]
        assert bool(item.reasons) is not worked


@pytest.mark.parametrize(("models", "sentence"), [("planet", "no workload planet"), ("identity", "is not built")])
def test_what_cannot_be_measured_is_refused(models: str, sentence: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["gpu", "--models", models, "--model-repository", str(tmp_path)])
    assert done.exit_code != 0
    assert sentence in " ".join(done.output.split())


def _model(repository: Path, group: str = "") -> Path:
    (repository / "m").mkdir(parents=True)
    (repository / "m" / "config.pbtxt").write_text(CONFIG + group)
    return repository


def _card(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int, utilisation: int) -> None:
    program = folder / "nvidia-smi"
    text = SMI.replace("{python}", sys.executable)
    program.write_text(text.replace("{memory}", str(memory)).replace("{utilisation}", str(utilisation)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
