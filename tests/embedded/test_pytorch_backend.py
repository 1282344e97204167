"""The ``pytorch`` backend in the real server."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from embedded.errors import ModelLoadError
from embedded.launcher import EmbeddedTriton
from tests.embedded.client import ModelClient
from tests.embedded.repository import ALL_TORCH
from tests.embedded.stubs import stubs, thread_counts
from tests.embedded.test_onnx_backend import VALUES

pytestmark = pytest.mark.live
Load = Callable[[str], ModelClient]
LEFT = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
RIGHT = np.array([[10.0, 20.0, 30.0, 40.0]], np.float32)
THREAD_POOLS = 2  # of the same size: OpenMP's, and pthreadpool's, which libtorch makes for XNNPACK


@pytest.mark.parametrize(
    ("name", "left", "right", "total", "rest"),
    [
        ("torch_indexed", "INPUT__0", "INPUT__1", "SUM__0", "DIFFERENCE__1"),
        ("torch_named", "left", "right", "SUM__0", "DIFFERENCE__1"),
        ("torch_ordered", "first", "second", "total", "rest"),
    ],
)
def test_names_bind_as_in_libtorch(model: Load, name: str, left: str, right: str, total: str, rest: str) -> None:
    answer = model(name).infer({left: LEFT, right: RIGHT})
    np.testing.assert_array_equal(answer[total], LEFT + RIGHT)
    np.testing.assert_array_equal(answer[rest], LEFT - RIGHT)


def test_only_the_requested_outputs_are_answered(model: Load) -> None:
    answer = model("torch_indexed").infer({"INPUT__0": LEFT, "INPUT__1": RIGHT}, outputs=["DIFFERENCE__1"])
    assert list(answer) == ["DIFFERENCE__1"]
    np.testing.assert_array_equal(answer["DIFFERENCE__1"], LEFT - RIGHT)


def test_an_optional_input(model: Load) -> None:
    client = model("torch_optional")
    np.testing.assert_array_equal(client.infer({"x": LEFT})["y__0"], LEFT + 1)
    np.testing.assert_array_equal(client.infer({"x": LEFT, "by": RIGHT})["y__0"], LEFT + RIGHT)


def test_requests_with_and_without_an_optional_input_at_the_same_time(model: Load) -> None:
    client = model("torch_optional")
    before = client.statistics()
    answers = client.infer_many([{"x": LEFT}] * 4 + [{"x": LEFT, "by": RIGHT}] * 4)
    for index, answer in enumerate(answers):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["y__0"], LEFT + (1 if index < 4 else RIGHT))
    assert client.since(before, 8).executions < 8


def test_every_dtype_comes_back_as_it_went_in(model: Load) -> None:
    names = [f"{dtype}__{place}" for place, dtype in enumerate(ALL_TORCH)]
    answer = model("torch_types").infer({f"IN_{name}": VALUES[name.split("__")[0]] for name in names})
    for name in names:
        expected = VALUES[name.split("__")[0]]
        np.testing.assert_array_equal(answer[f"OUT_{name}"], expected, err_msg=name)
        assert answer[f"OUT_{name}"].dtype == expected.dtype


def test_text_is_a_list_of_strings(model: Load) -> None:
    answer = model("torch_text").infer({"names": np.array(["Zoë"], np.object_)})
    assert answer["greetings__0"].tolist() == ["hello Zoë".encode()]


def test_text_is_batched_and_keeps_its_rows(model: Load) -> None:
    client = model("torch_texts")
    requests = [[["Ada", "Zoë"]], [["Kurt", "Emmy"], ["Alan", "Grace"]], [["", "Kurt"]]]
    before = client.statistics()
    answers = client.infer_many([{"names": np.array(names, np.object_)} for names in requests])
    for names, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, InferenceServerException), answer
        assert answer["greetings__0"].tolist() == [[f"hello {name}".encode() for name in row] for row in names]
    assert client.since(before, 4).executions < len(requests)


def test_bytes_that_are_no_text_are_refused_alone_and_name_the_input(model: Load) -> None:
    good, bad = [["Ada", "Zoë"]], [[b"\xff\xfe", b"Zo"]]
    answers = model("torch_texts").infer_many([{"names": np.array(names, np.object_)} for names in (good, bad, good)])
    assert isinstance(answers[1], InferenceServerException)
    assert "'names' holds bytes that are not UTF-8" in answers[1].message()
    for answer in (answers[0], answers[2]):
        assert not isinstance(answer, InferenceServerException), answer
        assert answer["greetings__0"].tolist() == [[b"hello Ada", "hello Zoë".encode()]]


def test_strings_that_make_no_rows_are_an_error_that_says_so(model: Load) -> None:
    reason = r"output 'rest__0' is 3 strings, which do not make 2 rows of \[2\]"
    with pytest.raises(InferenceServerException, match=reason):
        model("torch_too_few_texts").infer({"names": np.array([["a", "b"], ["c", "d"]], np.object_)})


def test_requests_are_batched_into_one_execution(model: Load) -> None:
    client = model("torch_indexed")
    before = client.statistics()
    answers = client.infer_many([{"INPUT__0": LEFT * value, "INPUT__1": RIGHT} for value in range(12)])
    for value, answer in enumerate(answers):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["SUM__0"], LEFT * value + RIGHT)
    counted = client.since(before, 12)
    assert counted.inferences == 12
    assert counted.executions < 12
    assert counted.infer_ns > 0


def test_requests_of_several_rows_share_an_execution(model: Load) -> None:
    client = model("torch_indexed")
    lefts = [np.random.default_rng(rows).random((rows, 4), np.float32) for rows in (1, 3, 2, 2)]
    before = client.statistics()
    answers = client.infer_many([{"INPUT__0": left, "INPUT__1": 2 * left} for left in lefts])
    for left, answer in zip(lefts, answers, strict=True):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["DIFFERENCE__1"], left - 2 * left)
    counted = client.since(before, 8)
    assert counted.inferences == 8
    assert counted.executions < len(lefts)


def test_requests_of_other_lengths_in_one_batch_are_run_by_length(model: Load) -> None:
    client = model("torch_ragged")
    requests = [{"x": np.arange(1, length + 1, dtype=np.int64).reshape(1, -1)} for length in (2, 5, 2, 1, 5, 3)]
    before = client.statistics()
    answers = client.infer_many(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["y"], -request["x"])
    assert client.since(before, len(requests)).executions < len(requests)


def test_one_bad_request_of_a_batch_fails_alone(model: Load) -> None:
    client = model("torch_lookup")
    indices = [1, 99, 2, 3]
    answers = client.infer_many([{"index__0": np.array([[index]], np.int64)} for index in indices])
    for index, answer in zip(indices, answers, strict=True):
        if index == 99:
            assert isinstance(answer, InferenceServerException)
            assert "torch_lookup: " in answer.message()
            assert "out of range" in answer.message()
            assert "Traceback" not in answer.message()
        else:
            assert not isinstance(answer, InferenceServerException), answer
            np.testing.assert_array_equal(answer["value__0"], [[10.0 * index]])


def test_a_wrong_shape_is_refused_and_named(model: Load) -> None:
    with pytest.raises(InferenceServerException, match="INPUT__0"):
        model("torch_indexed").infer({"INPUT__0": LEFT[:, :3], "INPUT__1": RIGHT})


def test_an_output_of_another_dtype_than_configured_is_an_error(model: Load) -> None:
    with pytest.raises(InferenceServerException, match=r"'SUM__0' is torch.float32 but FP64 in the configuration"):
        model("torch_wrong_type").infer({"left": LEFT, "right": RIGHT})


def test_each_instance_is_a_process_of_its_own(model: Load, triton: EmbeddedTriton) -> None:
    client = model("torch_instances_2")
    assert len(stubs(triton, "torch_instances_2")) == 2
    answers = client.infer_many([{"x": LEFT * value} for value in range(20)])
    for value, answer in enumerate(answers):
        assert not isinstance(answer, InferenceServerException), answer
        np.testing.assert_array_equal(answer["y"], LEFT * value + 1)


def test_thread_settings_take_effect(model: Load, triton: EmbeddedTriton) -> None:
    counts = {}
    for threads in (1, 4):
        model(f"torch_threads_{threads}")
        (counts[threads],) = thread_counts(triton, f"torch_threads_{threads}")
    assert counts[4] - counts[1] == THREAD_POOLS * 3


@pytest.mark.parametrize("instances", [1, 2])
def test_instances_share_half_of_the_cpus(model: Load, triton: EmbeddedTriton, instances: int) -> None:
    model("torch_threads_1")
    (one,) = thread_counts(triton, "torch_threads_1")
    model(f"torch_instances_{instances}")
    expected = max(1, len(os.sched_getaffinity(0)) // (2 * instances))
    assert thread_counts(triton, f"torch_instances_{instances}") == [one + THREAD_POOLS * (expected - 1)] * instances


@pytest.mark.parametrize("inference_mode", [True, False])
def test_no_gradients_are_kept_and_the_inference_mode_is_a_setting(model: Load, inference_mode: bool) -> None:
    answer = model(f"torch_inference_mode_{str(inference_mode).lower()}").infer({"x": LEFT})
    assert answer["modes"].tolist() == [[False, inference_mode]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing_pt", "missing_pt/1/model.pt is missing"),
        ("corrupt_pt", "corrupt_pt/1/model.pt cannot be loaded"),
        ("torch_too_many", r"inputs \['c__2'\] of model 'torch_too_many': forward\(\) takes 2"),
    ],
)
def test_a_model_that_cannot_be_served_does_not_load_and_says_why(
    triton: EmbeddedTriton, name: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason) as failure:
        triton.load(name)
    assert list(failure.value.failures) == [name]
    assert "\n" not in str(failure.value)
    assert triton.poll() is None
