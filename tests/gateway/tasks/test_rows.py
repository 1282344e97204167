from __future__ import annotations

import numpy as np
import pytest

from gateway.errors import BadUpstream
from gateway.settings import Settings
from gateway.tasks.rows import group_rows, pad_rows, role
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceResult, Units
from tests.gateway.tasks.models import Runner


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("input_ids", "input_ids"),
        ("input_ids__0", "input_ids"),
        ("scores__12", "scores"),
        ("a__b", "a__b"),
        ("__3", ""),
        ("a__", "a__"),
        ("token_type_ids", "token_type_ids"),
    ],
)
def test_role(name: str, expected: str) -> None:
    assert role(name) == expected


@pytest.mark.parametrize(
    ("lengths", "buckets", "largest", "expected"),
    [
        ([3], (8, 16), 4, [((0,), 8)]),
        ([8], (8, 16), 4, [((0,), 8)]),
        ([9], (8, 16), 4, [((0,), 16)]),
        ([17], (8, 16), 4, [((0,), 17)]),
        ([9, 3, 8, 16], (8, 16), 4, [([1, 2], 8), ([0, 3], 16)]),
        ([3, 3, 3, 3, 3], (8,), 2, [([0, 1], 8), ([2, 3], 8), ([4], 8)]),
        ([3, 9, 5], (), 4, [([0, 1, 2], 9)]),
        ([3, 4], (8,), 0, [([0], 8), ([1], 8)]),
    ],
)
def test_groups(lengths: list[int], buckets: tuple[int, ...], largest: int, expected: list[object]) -> None:
    groups = group_rows(lengths, buckets, largest)
    assert [(group.positions, group.width) for group in groups] == expected


def test_padding() -> None:
    padded = pad_rows([[1, 2, 3], [], [4]], 4, 9, np.dtype(np.int64))
    assert padded.tolist() == [[1, 2, 3, 9], [9, 9, 9, 9], [4, 9, 9, 9]]
    assert pad_rows([[1]], 3, 0, np.dtype(np.int32)).tolist() == [[1, 0, 0]]


def test_answers_come_back_in_the_order_of_the_call(runner: Runner) -> None:
    texts = [f"{'word ' * count}number {count}" for count in (20, 1, 40, 2, 3, 30, 4, 5, 6)]
    plan = runner.plan("sentiment", "text-classification", texts)
    shapes = [tuple(request.inputs[0].shape) for request in plan.requests]
    assert shapes == [(4, 16), (2, 16), (1, 32), (2, 64)]
    assert [request.inputs[0].shape for request in plan.requests] == [
        request.inputs[1].shape for request in plan.requests
    ]
    together = runner.call("sentiment", "text-classification", texts)
    for text, labels in zip(texts, together.items, strict=True):
        alone = runner.call("sentiment", "text-classification", text).items[0]
        assert [label.label for label in labels] == [label.label for label in alone]
        assert labels[0].score == pytest.approx(alone[0].score, abs=1e-6)


def test_units_count_no_padding(runner: Runner) -> None:
    plan = runner.plan("sentiment", "text-classification", ["hello", "hello world"])
    assert plan.units == Units(tokens=3 + 4, rows=2)
    ids, mask = (to_numpy(tensor) for tensor in plan.requests[0].inputs)
    assert ids.shape == (2, 16)
    assert mask.sum(axis=1).tolist() == [3, 4]
    assert not ids[mask == 0].any()


def test_without_buckets_rows_are_padded_to_the_longest(runner: Runner) -> None:
    plain = Runner(runner.catalog, Settings(length_buckets=False))
    plan = plain.plan("sentiment", "text-classification", ["hello", "hello world again"])
    assert [tuple(request.inputs[0].shape) for request in plan.requests] == [(2, 5)]


def test_a_damaged_answer_is_the_upstreams_fault(runner: Runner) -> None:
    plan = runner.plan("sentiment", "text-classification", ["a", "b"])
    good = np.zeros((2, 2), np.float32)
    for array, name in (
        (np.zeros((1, 2), np.float32), "logits"),
        (np.zeros((2,), np.float32), "logits"),
        (np.full((2, 2), np.nan, np.float32), "logits"),
        (good, "other"),
    ):
        with pytest.raises(BadUpstream):
            plan.finish([InferenceResult("sentiment", "1", (from_numpy(name, array),))])
    assert plan.finish([InferenceResult("sentiment", "1", (from_numpy("logits", good),))]).items[0][0].score == 0.5
