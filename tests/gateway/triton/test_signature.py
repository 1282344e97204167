"""Requests are checked before Triton sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.errors import Invalid
from gateway.triton.signature import MAX_TEXTS, Signature, TensorSignature
from gateway.triton.tensors import from_numpy
from gateway.types import InferenceRequest, Tensor

SIGNATURE = Signature(
    model="m",
    inputs={
        "ids": TensorSignature("ids", "INT64", (-1, -1)),
        "mask": TensorSignature("mask", "INT64", (-1, -1), optional=True),
        "text": TensorSignature("text", "BYTES", (-1, 1), optional=True),
    },
    outputs={"logits": TensorSignature("logits", "FP32", (-1, 2))},
    max_batch_size=4,
    dynamic_batching=True,
)


def ids(*shape: int, name: str = "ids") -> Tensor:
    return from_numpy(name, np.zeros(shape, dtype=np.int64))


def raw(datatype: Any, shape: tuple[int, ...], data: bytes, name: str = "ids") -> Tensor:
    return Tensor(name, datatype, shape, data)


def check(*inputs: Tensor, outputs: tuple[str, ...] = ()) -> None:
    SIGNATURE.check(InferenceRequest("m", inputs, outputs=outputs))


def test_good_requests_pass() -> None:
    check(ids(1, 7))
    check(ids(4, 7), ids(4, 3, name="mask"), outputs=("logits",))
    check(ids(1, 1), from_numpy("text", np.array([["a"]], dtype=object)))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((), "missing input 'ids'"),
        ((ids(1, 2), ids(1, 2)), "twice"),
        ((ids(1, 2), ids(1, 2, name="other")), "unexpected input 'other'"),
        ((ids(5, 2),), "max_batch_size"),
        ((ids(2, 2), ids(1, 2, name="mask")), "batch 1"),
        ((ids(3),), "has shape"),
        ((raw("INT64", (1, 0), b""),), "not positive"),
        ((raw("INT64", (0, 3), b""),), "not positive"),
        ((raw("INT64", (-1, 3), b"x" * 24),), "not positive"),
        ((raw("INT64", (1,) * 40, b"x" * 8),), "too many"),
        ((raw("INT64", (1, 2**60 + 2), b""),), "too many elements"),
        ((raw("INT64", (4, 2**60 + 2), b""),), "too many elements"),
        ((raw("INT64", (1, 3), b"x" * 23),), "23 bytes"),
        ((raw("INT64", (1, 3), b"x" * 25),), "25 bytes"),
        ((raw("INT32", (1, 3), b"x" * 12),), "takes INT64"),
        ((ids(1, 2), raw("BYTES", (1, 1), b"\x09\0\0\0a", "text")), "longer than the tensor"),
        ((ids(2, 2), raw("BYTES", (2, 1), b"\x01\0\0\0a", "text")), "1 elements"),
        ((ids(1, 2), raw("BYTES", (1, 1), b"\x01\0\0\0a" * 3, "text")), "more elements"),
    ],
)
def test_bad_requests_are_named(tensors: tuple[Tensor, ...], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        check(*tensors)


def test_texts_beyond_number_are_not_looked_at() -> None:
    """Sixty million bytes of empty texts are fifteen million elements, each of which would be looked at."""
    many = Signature("m", {"text": TensorSignature("text", "BYTES", (-1,))}, {}, 0)
    assert many.expect("text", "BYTES", (MAX_TEXTS,)) == MAX_TEXTS
    with pytest.raises(Invalid, match="too many elements"):
        many.check(InferenceRequest("m", (raw("BYTES", (MAX_TEXTS + 1,), b"not looked at", "text"),)))


def test_a_form_can_be_asked_for_before_there_is_data() -> None:
    assert SIGNATURE.expect("ids", "INT64", (4, 7)) == 28
    for name, datatype, shape in (("other", "INT64", (1, 1)), ("ids", "FP32", (1, 1)), ("ids", "INT64", (1,)),
                                  ("ids", "INT64", (5, 1)), ("ids", "INT64", (1, -1))):  # fmt: skip
        with pytest.raises(Invalid):
            SIGNATURE.expect(name, datatype, shape)


def test_a_reshaped_input_has_dimensions_all_the_same() -> None:
    reshaped = Signature("m", {"x": TensorSignature("x", "FP32", (-1, 4), reshaped=True)}, {}, 8)
    assert reshaped.expect("x", "FP32", (2, 2, 2)) == 8
    with pytest.raises(Invalid, match="shape"):
        reshaped.check(InferenceRequest("m", (raw("FP32", (), bytes(4), "x"),)))


@pytest.mark.parametrize("outputs", [("nothing",), ("logits", "logits")])
def test_bad_output_selections_are_refused(outputs: tuple[str, ...]) -> None:
    with pytest.raises(Invalid, match="output"):
        check(ids(1, 2), outputs=outputs)


def test_models_that_keep_state_or_answer_with_streams_are_never_coalesced() -> None:
    assert SIGNATURE.coalescible
    for change in ({"decoupled": True}, {"stateful": True}, {"dynamic_batching": False}, {"max_batch_size": 0}):
        fields = {
            name: getattr(SIGNATURE, name)
            for name in ("model", "inputs", "outputs", "max_batch_size", "dynamic_batching")
        }
        assert not Signature(**(fields | change)).coalescible


def test_a_form_that_was_right_says_nothing_of_other_sizes_and_outputs() -> None:
    request = InferenceRequest("m", (ids(1, 3),))
    for _ in range(2):
        SIGNATURE.check(request)
    short = Tensor("ids", "INT64", (1, 3), bytes(16))
    with pytest.raises(Invalid, match="16 bytes"):
        SIGNATURE.check(InferenceRequest("m", (short,)))
    with pytest.raises(Invalid, match="unknown output"):
        SIGNATURE.check(InferenceRequest("m", (ids(1, 3),), outputs=("nothing",)))


def test_texts_are_looked_into_every_time() -> None:
    def text(data: bytes) -> InferenceRequest:
        return InferenceRequest("m", (ids(1, 3), Tensor("text", "BYTES", (1, 1), data)))

    SIGNATURE.check(text(b"\2\0\0\0ab"))
    with pytest.raises(Invalid, match="text"):
        SIGNATURE.check(text(b"\3\0\0\0ab"))  # as many bytes, and a length that is not there
