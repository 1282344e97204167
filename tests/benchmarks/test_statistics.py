"""Intervals, verdicts of comparisons, and what Triton's counters say about batching."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks import bootstrap
from benchmarks.batching import batch_costs, explain
from benchmarks.compare import verdict
from benchmarks.configs import changed, rewrite
from benchmarks.observe import Statistics, read_statistics


def test_a_ratio_of_pairs_ignores_what_disturbs_both() -> None:
    direct = [1000, 500, 800, 900, 400]  # a noisy machine
    gateway = [value * 0.9 for value in direct]
    found = bootstrap.paired_ratio(gateway, direct)
    assert found.value == pytest.approx(0.9)
    assert found.low == pytest.approx(0.9)
    assert found.high == pytest.approx(0.9)


def test_a_round_without_any_answer_is_left_out() -> None:
    found = bootstrap.paired_ratio([10.0, 5.0, 10.0, 10.0], [20.0, 0.0, 20.0, 20.0])
    assert (found.value, found.runs) == (0.5, 3)
    assert str(bootstrap.paired_difference([float("nan")], [1.0])) == "-"


def test_two_runs_have_no_interval() -> None:
    found = bootstrap.median([1.0, 2.0])
    assert (found.low, found.high, found.runs) == (None, None, 2)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ([100, 101, 99, 100, 100], [130, 131, 129, 130, 128], "better"),
        ([100, 101, 99, 100, 100], [80, 81, 79, 80, 80], "worse"),
        ([100, 101, 99, 100, 100], [102, 103, 101, 102, 102], "no difference"),  # sure, but below the noise floor
        ([60, 140, 100, 80, 120], [70, 150, 110, 90, 130], "no difference"),
        ([100, 100], [200, 200], "too few runs"),
    ],
)
def test_a_change_is_claimed_only_when_it_is_more_than_noise(
    before: list[float], after: list[float], word: str
) -> None:
    assert verdict(bootstrap.change(before, after)) == word


def _item(requests: int, inferences: int, executions: int, queue_ms: float, infer_ms: float) -> dict[str, Any]:
    def stage(milliseconds: float) -> dict[str, int]:
        return {"count": requests, "ns": int(milliseconds * 1e6 * requests)}

    return {
        "inference_count": str(inferences), "execution_count": executions,
        "inference_stats": {
            "success": {"count": requests, "ns": 0}, "queue": stage(queue_ms), "compute_input": stage(0.01),
            "compute_infer": stage(infer_ms), "compute_output": stage(0.01),
        },
        "batch_stats": [
            {"batch_size": 1, "compute_infer": {"count": 50, "ns": 50 * 2_000_000}},
            {"batch_size": 8, "compute_infer": {"count": 50, "ns": 50 * 8_000_000}},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("item", "config", "phrase"),
    [
        (_item(0, 0, 0, 0, 0), {"max_batch_size": 8, "dynamic_batching": {}}, "nothing to explain"),
        (_item(9, 9, 9, 0, 1), {"max_batch_size": 0}, "no batch dimension"),
        (_item(100, 100, 100, 0.1, 5), {"max_batch_size": 8}, "dynamic_batching is absent"),
        (_item(100, 100, 100, 0.1, 5), {"max_batch_size": 8, "dynamic_batching": {}}, "seldom meet"),
        (_item(100, 100, 100, 9, 5), {"max_batch_size": 8, "dynamic_batching": {}}, "yet run alone"),
        (
            _item(100, 100, 100, 9, 5),
            {"max_batch_size": 8, "dynamic_batching": {}, "instance_group": [{"count": 2}]},
            "2 instances take requests",
        ),
        (
            _item(100, 800, 100, 1, 5),
            {"max_batch_size": 8, "dynamic_batching": {"default_queue_policy": {"max_queue_size": 9}}},
            "from prefetching",
        ),
        (_item(100, 800, 100, 1, 5), {"max_batch_size": 8, "dynamic_batching": {}}, "batches are full"),
        (_item(100, 800, 200, 1, 5), {"max_batch_size": 8, "dynamic_batching": {}}, "a request brings 8.0 rows"),
        (_item(100, 400, 100, 1, 5), {"max_batch_size": 8, "dynamic_batching": {}}, "batching pays"),
    ],
)
def test_why(item: dict[str, Any], config: dict[str, Any], phrase: str) -> None:
    found = explain("m", read_statistics([item]), config)
    assert phrase in " / ".join(found.findings)


def test_counters_of_a_run_are_a_difference() -> None:
    before, after = read_statistics([_item(10, 10, 10, 1, 1)]), read_statistics([_item(30, 50, 20, 1, 1)])
    grown = after - before
    assert (grown.requests, grown.inferences, grown.executions) == (20, 40, 10)
    assert grown.mean_batch == 4
    assert grown.batches == {}


def test_compute_per_inference_by_batch_size() -> None:
    assert batch_costs(read_statistics([_item(1, 1, 1, 0, 0)])) == {1: 2.0, 8: 1.0}
    assert batch_costs(Statistics(batches={4: 3}, batch_ns={4: 1})) == {}  # too few to say


CONFIG = text_format.Parse(
    """name: "m" backend: "onnxruntime" max_batch_size: 16 instance_group [ { count: 1 kind: KIND_CPU } ]
    dynamic_batching { max_queue_delay_microseconds: 100 default_queue_policy { max_queue_size: 9 } }
    parameters { key: "intra_op_thread_count" value { string_value: "1" } }""",
    model_config_pb2.ModelConfig(),
)


def _parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_configuration_is_changed_where_asked_and_nowhere_else() -> None:
    same = _parsed(changed(CONFIG))
    assert same == CONFIG
    found = _parsed(changed(CONFIG, instances=2, queue_delay_us=2000, preferred=(8, 16, 32)))
    assert found.instance_group[0].count == 2
    assert found.dynamic_batching.max_queue_delay_microseconds == 2000
    assert list(found.dynamic_batching.preferred_batch_size) == [8, 16]
    assert found.dynamic_batching.default_queue_policy.max_queue_size == 9
    assert found.parameters["intra_op_thread_count"].string_value == "1"
    assert not _parsed(changed(CONFIG, batching=False)).HasField("dynamic_batching")
    assert CONFIG.instance_group[0].count == 1


def test_a_rewritten_configuration_is_vouched_for_in_the_copys_card(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"files": {"config.pbtxt": "old", "tokenizer.json": "kept"}}))
    rewrite(tmp_path, "name: 'm'")
    files = json.loads((tmp_path / "card.json").read_text())["files"]
    assert files == {"config.pbtxt": hashlib.sha256(b"name: 'm'").hexdigest(), "tokenizer.json": "kept"}
