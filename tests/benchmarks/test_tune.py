"""The search for better settings, on a model whose queue delay is absurd."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.batching import Setting, tune
from benchmarks.configs import changed, copy, read_config, rewrite
from benchmarks.suite import Slo

ROOT = Path(__file__).parents[2]


@pytest.mark.live
@pytest.mark.slow
async def test_a_better_setting_is_found_confirmed_and_written(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    copy(ROOT / "model_repository" / "identity", repository / "identity")
    slow = changed(read_config(repository / "identity" / "config.pbtxt"), queue_delay_us=600_000)
    rewrite(repository / "identity", slow)
    found = await tune(
        "identity", "identity", repository, Slo(300.0), [Setting(), Setting(queue_delay_us=0)],
        work=tmp_path / "work", users=(2,), seconds=1.0, seed=1, confirm=2,
    )  # fmt: skip
    assert found.baseline.best == 0  # every request waits for others that do not come
    assert found.winner is not None
    assert len(found.winner.goodput) == len(found.baseline.goodput) == 2
    assert found.config is not None
    written = text_format.Parse(found.config, model_config_pb2.ModelConfig())
    assert written.dynamic_batching.max_queue_delay_microseconds == 0
    assert (
        read_config(repository / "identity" / "config.pbtxt").dynamic_batching.max_queue_delay_microseconds == 600_000
    )
