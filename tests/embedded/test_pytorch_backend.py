"""The ``pytorch`` backend in the real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from embedded.errors import ModelLoadError
from embedded.launcher import EmbeddedTriton
from tests.embedded.client import ModelClient
from tests.embedded.repository import ALL_TORCH
from tests.embedded.test_onnx_backend import VALUES

pytestmark = [pytest.mark.live, pytest.mark.xdist_group("embedded")]
Load = Callable[[str], ModelClient]
LEFT = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
RIGHT = np.array([[10.0, 20.0, 30.0, 40.0]], np.float32)


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


def test_every_dtype_comes_back_as_it_went_in(model: Load) -> None:
    values: dict[str, Any] = {**VALUES, "BF16": np.array([[-1.5, 0.0, 256.0]], ml_dtypes.bfloat16)}
    names = [f"{dtype}__{place}" for place, dtype in enumerate(ALL_TORCH)]
    answer = model("torch_types").infer({f"IN_{name}": values[name.split("__")[0]] for name in names})
    for name in names:
        expected = values[name.split("__")[0]]
        np.testing.assert_array_equal(answer[f"OUT_{name}"], expected, err_msg=name)
        assert answer[f"OUT_{name}"].dtype == expected.dtype


def test_text_is_a_list_of_strings(model: Load) -> None:
    answer = model("torch_text").infer({"names": np.array(["Zoë"], np.object_)})
    assert answer["greetings__0"].tolist() == ["hello Zoë".encode()]


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
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
