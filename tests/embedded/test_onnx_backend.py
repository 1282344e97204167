"""The ``onnxruntime`` backend in the real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from embedded.errors import ModelLoadError
from embedded.launcher import EmbeddedTriton, serving
from tests.embedded.client import ModelClient
from tests.embedded.repository import ALL_ONNX
from tests.embedded.stubs import stubs, thread_counts

pytestmark = pytest.mark.live
Load = Callable[[str], ModelClient]

VALUES: dict[str, Any] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[-1.5, 0.0, 65504.0]], np.float16),
    "FP32": np.array([[-1.5, np.inf, 3.4e38]], np.float32),
    "FP64": np.array([[-1.5, 0.0, 1.7e308]], np.float64),
    "BF16": np.array([[-1.5, 0.0, 256.0]], ml_dtypes.bfloat16),
    "STRING": np.array([["", "naïve", "深度学习"]], np.object_),
}


def row(value: float) -> np.ndarray[Any, Any]:
    return np.full((1, 64), value, np.float32)


def test_every_dtype_comes_back_as_it_went_in(model: Load) -> None:
    answer = model("types").infer({f"IN_{dtype}": VALUES[dtype] for dtype in ALL_ONNX})
    for dtype in ALL_ONNX:
        expected = VALUES[dtype]
        if dtype == "STRING":
            expected = np.array([[text.encode() for text in expected[0]]], np.object_)
        np.testing.assert_array_equal(answer[f"OUT_{dtype}"], expected, err_msg=dtype)
        assert answer[f"OUT_{dtype}"].dtype == expected.dtype


def test_bytes_that_are_no_text_are_refused_and_name_the_input(model: Load) -> None:
    inputs = {f"IN_{dtype}": VALUES[dtype] for dtype in ALL_ONNX}
    inputs["IN_STRING"] = np.array([[b"\xff\xfe", b"a", b"b"]], np.object_)
    with pytest.raises(InferenceServerException, match="'IN_STRING' holds bytes that are not UTF-8"):
        model("types").infer(inputs)


def test_several_inputs_and_outputs(model: Load) -> None:
    left, right = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
    answer = model("add_sub").infer({"A": left, "B": right})
    np.testing.assert_array_equal(answer["SUM"], left + right)
    np.testing.assert_array_equal(answer["DIFFERENCE"], left - right)


def test_only_the_requested_outputs_are_answered(model: Load) -> None:
    ones = np.ones((1, 4), np.float32)
    answer = model("add_sub").infer({"A": ones, "B": ones}, outputs=["DIFFERENCE"])
    assert list(answer) == ["DIFFERENCE"]
    np.testing.assert_array_equal(answer["DIFFERENCE"], ones - ones)


def test_an_optional_input_takes_its_default_also_beside_requests_that_bring_it(model: Load) -> None:
    client = model("optional")
    x = np.array([[1.0, 2.0]], np.float32)
    bias = np.array([[10.0, 20.0]], np.float32)
    answers = client.infer_many([{"X": x}, {"X": x, "BIAS": bias}] * 4)
    for index, answer in enumerate(answers):
        assert not isinstance(answer, InferenceServerException), answer
        expected = [[101.0, 202.0]] if index % 2 == 0 else [[11.0, 22.0]]
        np.testing.assert_array_equal(answer["Y"], expected)


def test_requests_are_batched_into_one_execution_and_counted_as_one(model: Load) -> None:
    client = model("batching")
    before = client.statistics()
    answers = client.infer_many([{"INPUT": row(value)} for value in range(16)])
    for value, answer in enumerate(answers):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["OUTPUT"], row(value))
    counted = client.since(before, 16)
    assert counted.inferences == 16
    assert counted.executions < 16, "the mean batch size must be above 1"
    assert sum(size * count for size, count in counted.batches.items()) == 16
    assert sum(counted.batches.values()) == counted.executions
    assert max(counted.batches) > 1
    assert counted.infer_ns > 0


def test_requests_of_several_rows_share_an_execution(model: Load) -> None:
    client = model("batching")
    rows = [1, 3, 2, 2]
    requests = [{"INPUT": np.random.default_rng(count).random((count, 64), np.float32)} for count in rows]
    before = client.statistics()
    answers = client.infer_many(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["OUTPUT"], request["INPUT"])
    counted = client.since(before, sum(rows))
    assert counted.inferences == sum(rows)
    assert counted.executions < len(rows)


def test_requests_of_other_lengths_in_one_batch_are_run_by_length(model: Load) -> None:
    client = model("ragged")
    requests = [{"X": np.arange(1, length + 1, dtype=np.int64).reshape(1, -1)} for length in (2, 5, 2, 1, 5, 3)]
    before = client.statistics()
    answers = client.infer_many(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["Y"], -request["X"])
    assert client.since(before, len(requests)).executions < len(requests)


def test_bfloat16_is_batched_beside_other_dtypes(model: Load) -> None:
    client = model("bfloat16")
    requests = [
        {"X": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2).astype(ml_dtypes.bfloat16)} for rows in (1, 3, 2)
    ]
    before = client.statistics()
    answers = client.infer_many(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["NARROW"], request["X"])
        np.testing.assert_array_equal(answer["WIDE"], request["X"].astype(np.float32))
    assert client.since(before, 6).executions < len(requests)
    assert list(client.infer(requests[0], outputs=["WIDE"])) == ["WIDE"]


def test_one_bad_request_of_a_batch_fails_alone(model: Load) -> None:
    client = model("lookup")
    indices = [1, 2, 99, 3, 4]
    before = client.statistics()
    answers = client.infer_many([{"INDEX": np.array([[index]], np.int64)} for index in indices])
    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, InferenceServerException)
            assert "lookup" in answer.message()
            assert "out of" in answer.message()
            assert "\n" not in answer.message()
        else:
            assert not isinstance(answer, InferenceServerException), answer
            np.testing.assert_array_equal(answer["VALUE"], [[10.0 * index]])
    # Triton counts the batch as it was executed, the bad row too
    assert client.since(before, len(indices)).executions < len(indices)


@pytest.mark.parametrize("shape", [(1, 63), (64,), (1, 1, 64), (9, 64)])
def test_a_wrong_shape_is_refused_and_named(model: Load, shape: tuple[int, ...]) -> None:
    client = model("batching")
    with pytest.raises(InferenceServerException, match=r"INPUT|batch-size"):
        client.infer({"INPUT": np.zeros(shape, np.float32)})
    np.testing.assert_array_equal(client.infer({"INPUT": row(5)})["OUTPUT"], row(5))


def test_a_model_without_batch_dimension(model: Load) -> None:
    answer = model("unbatched").infer({"X": np.ones((2, 7), np.float32)})
    np.testing.assert_array_equal(answer["Y"], [7.0, 7.0])


def test_the_configuration_is_completed_from_the_file(repository: Path, tmp_path: Path) -> None:
    with (
        serving(repository, tmp_path, ["automatic"]) as completing,
        tritonclient.grpc.InferenceServerClient(completing.grpc_url) as connection,
    ):
        client = ModelClient(connection, "automatic")
        np.testing.assert_array_equal(client.infer({"INPUT": np.ones((4, 64), np.float32)})["OUTPUT"], np.ones((4, 64)))
        with pytest.raises(InferenceServerException, match="batch-size"):
            client.infer({"INPUT": np.ones((5, 64), np.float32)})


def test_default_model_filename_is_honoured(model: Load) -> None:
    np.testing.assert_array_equal(model("renamed").infer({"INPUT": row(2)})["OUTPUT"], row(2))


def test_the_response_cache_answers_the_second_time(model: Load) -> None:
    client = model("cached")
    before = client.statistics()
    for _ in range(3):
        np.testing.assert_array_equal(client.infer({"INPUT": row(7)})["OUTPUT"], row(7))
    counted = client.since(before, 1)
    assert counted.executions == 1
    assert counted.cache_hits == 2


def test_each_instance_is_a_process_of_its_own(model: Load, triton: EmbeddedTriton) -> None:
    client = model("instances_2")
    assert len(stubs(triton, "instances_2")) == 2
    answers = client.infer_many([{"INPUT": row(value)} for value in range(20)])
    for value, answer in enumerate(answers):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["OUTPUT"], row(value))


def test_thread_settings_take_effect(model: Load, triton: EmbeddedTriton) -> None:
    counts = {}
    for threads in (1, 4):
        name = f"threads_{threads}"
        np.testing.assert_array_equal(model(name).infer({"INPUT": row(1)})["OUTPUT"], row(1))
        (counts[threads],) = thread_counts(triton, name)
    assert counts[4] - counts[1] == 3


@pytest.mark.parametrize("instances", [1, 2])
def test_instances_share_the_cpus(model: Load, triton: EmbeddedTriton, instances: int) -> None:
    model("threads_1")
    (one,) = thread_counts(triton, "threads_1")
    model(f"instances_{instances}")
    expected = max(1, len(os.sched_getaffinity(0)) // instances)
    assert thread_counts(triton, f"instances_{instances}") == [one + expected - 1] * instances


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("corrupt", "corrupt/1/model.onnx cannot be loaded"),
        ("missing", "missing/1/model.onnx is missing"),
        ("bad_threads", "intra_op_thread_count of model 'bad_threads' is 'many'"),
        ("bad_level", "optimization.graph.level of model 'bad_level' is 7"),
        ("bad_type", "input 'INPUT' is INT64 in the configuration, FP32 in"),
        ("bad_name", "input 'WRONG' is not in"),
        ("bfloat16_text", "BF16 beside inputs of STRING"),
    ],
)
def test_a_model_that_cannot_be_served_does_not_load_and_says_why(
    triton: EmbeddedTriton, model: Load, name: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason) as failure:
        triton.load(name)
    assert list(failure.value.failures) == [name]
    assert "\n" not in str(failure.value)
    np.testing.assert_array_equal(
        model("add_sub").infer({"A": np.ones((1, 4), "f"), "B": np.ones((1, 4), "f")})["SUM"], [[2] * 4]
    )


def test_unload_and_load_again(triton: EmbeddedTriton, model: Load, repository: Path) -> None:
    client = model("identity")
    assert "identity" in triton.ready_models()
    triton.unload("identity")
    with pytest.raises(InferenceServerException, match="identity"):
        client.infer({"INPUT": row(1)})
    assert "identity" not in triton.models
    np.testing.assert_array_equal(model("identity").infer({"INPUT": row(1)})["OUTPUT"], row(1))
