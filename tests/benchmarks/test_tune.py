"""The search for better settings, on a model whose queue delay is absurd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.batching import Setting, Trial, Tuning, candidates, goodput, load_for, percentile_ms
from benchmarks.closedloop import ClosedRun
from benchmarks.configs import changed, read_config, rewrite
from benchmarks.recording import Outcome, Recording
from benchmarks.suite import Slo
from tidegate.benching import WRITTEN, write_tuning
from tidegate.commands.bench import app

ROOT = Path(__file__).parents[2]


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(900)  # seven stacks, one after the other
def test_a_better_setting_of_ones_own_model_is_found_confirmed_and_written(tmp_path: Path) -> None:
    repository, out = _own_model(tmp_path / "models"), tmp_path / "out"
    out.mkdir()
    for name in WRITTEN:
        (out / name).write_text("of an earlier winner")
    command = ["tune", "mine", "--model-repository", str(repository), "--out", str(out), "--slo", "p95=500ms"]
    command += ["--users", "2", "--seconds", "1", "--instances", "1", "--delays", "0", "--confirm", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    evidence = json.loads((out / "evidence.json").read_text())
    assert [trial["setting"]["coalescing"] for trial in evidence["trials"]].count(False) == 2
    baseline, winner = evidence["baseline"], evidence["winner"]
    assert baseline["goodput"][0] == 0  # every request waits for others that do not come
    assert len(winner["goodput"]) == len(baseline["goodput"]) == 2
    assert min(winner["goodput"]) > max(baseline["goodput"])
    assert "better:" in done.output
    assert (out / "config.pbtxt").read_text() == evidence["config"]
    found = read_config(out / "config.pbtxt")
    assert found.name == "mine"
    assert found.dynamic_batching.max_queue_delay_microseconds == 0
    assert read_config(repository / "mine" / "config.pbtxt").dynamic_batching.max_queue_delay_microseconds == 600_000
    assert "earlier" not in (out / "recipe.yaml").read_text()
    assert (out / "gateway.env").exists() is not winner["setting"]["coalescing"]


def _own_model(repository: Path) -> Path:
    """A model that the suite knows nothing of, built as its owner would, whose batcher waits for 600 ms."""
    folder = repository / "mine"
    folder.mkdir(parents=True)
    recipe = (ROOT / "model_repository" / "identity" / "model.yaml").read_text()
    (folder / "model.yaml").write_text(recipe.replace("name: identity", "name: mine", 1))
    environment = {**os.environ, "TIDEGATE_MODEL_REPOSITORY": str(repository)}
    subprocess.run([sys.executable, "-m", "tidegate", "models", "build", "mine"], env=environment, check=True)
    rewrite(folder, changed(read_config(folder / "config.pbtxt"), queue_delay_us=600_000))
    return repository


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["planet"], "planet is not built"),
        (["one", "--workload", "planet"], "no workload 'planet'"),
        (["one", "--workload", "embeddings-tensors"], "is for the model embeddings alone"),
        (["whole"], "nothing to tune"),
        (["words"], "takes text"),
    ],
)
def test_what_cannot_be_tuned_is_refused(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    for name, batch, kind in (("one", 8, "TYPE_FP32"), ("whole", 0, "TYPE_FP32"), ("words", 8, "TYPE_STRING")):
        (tmp_path / name).mkdir()
        text = f'name: "{name}" max_batch_size: {batch} input [ {{ name: "X" data_type: {kind} dims: [ 2 ] }} ]'
        (tmp_path / name / "config.pbtxt").write_text(text)
    done = CliRunner().invoke(app, ["tune", *arguments, "--model-repository", str(tmp_path)])
    assert done.exit_code != 0
    assert sentence in " ".join(done.output.split())


def test_a_workload_of_the_same_task_loads_another_model() -> None:
    assert load_for("mine", "sentiment", 1).request(0).path.endswith("/mine")
    metadata = {"name": "mine", "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 3]}], "outputs": []}
    assert load_for("mine", None, 1, metadata).request(0).path == "/v2/models/mine/infer"


def test_every_kind_of_setting_is_tried() -> None:
    found = candidates(16, [1, 4], [0, 500])
    assert found[0] == Setting()
    assert len(set(found)) == len(found)
    assert {setting.instances for setting in found if setting.preferred == (8, 16)} == {1, 4}
    assert {setting.instances for setting in found if not setting.coalescing} == {None, 1, 4}
    assert str(found[-1]) == "delay 500 µs, 4 instances, no coalescing"
    assert not any(setting.preferred for setting in candidates(4, [1], [0, 500]))


def _run(latencies_ms: list[float]) -> ClosedRun:
    recording = Recording()
    for number, latency in enumerate(latencies_ms):
        recording.add(number, number, number + int(latency * 1e6), Outcome.OK, 200)
    return ClosedRun(1, recording, 0, int(1e9), 0.0, len(latencies_ms))


def test_an_objective_that_too_few_samples_speak_for_is_not_met() -> None:
    few, enough = _run([1.0] * 80), _run([1.0] * 95 + [50.0] * 5)
    assert (goodput(few, Slo(10.0)), percentile_ms(few, 95)) == (0, None)
    assert goodput(enough, Slo(10.0)) == 95
    assert percentile_ms(enough, 95) == 1.0
    assert goodput(_run([1.0] * 94 + [50.0] * 6), Slo(10.0)) == 0


def _tuning(**winner: Any) -> Tuning:
    trial = Trial(Setting(queue_delay_us=0, **winner), [2.0], 4, 1.0, None)
    return Tuning("m", Slo(1.0), [trial], trial, trial if winner else None, "a config" if winner else None)


def test_the_winner_is_written_with_what_the_gateway_needs(tmp_path: Path) -> None:
    write_tuning(_tuning(coalescing=False), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(WRITTEN)
    assert (tmp_path / "gateway.env").read_text() == "TIDEGATE_COALESCE=false\n"
    assert "max_queue_delay_us: 0" in (tmp_path / "recipe.yaml").read_text()


def test_without_a_winner_the_evidence_stands_alone(tmp_path: Path) -> None:
    write_tuning(_tuning(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["evidence.json"]
