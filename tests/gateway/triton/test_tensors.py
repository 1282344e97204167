"""The raw tensor representation, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.triton.tensors import NUMPY_TYPES, count_bytes, decode_bytes, from_numpy, join_rows, split_rows, to_numpy
from gateway.types import Tensor


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES))
def test_every_numeric_type_survives_the_round_trip(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(NUMPY_TYPES[datatype])
    tensor = from_numpy("x", array)
    assert tensor.datatype == datatype
    assert tensor.shape == (2, 3)
    back = to_numpy(tensor)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_big_endian_arrays_are_written_little_endian() -> None:
    assert from_numpy("x", np.array([1, 256], dtype=">i4")).data == b"\x01\0\0\0\0\1\0\0"


def test_strings_and_bytes_become_length_prefixed_elements() -> None:
    tensor = from_numpy("x", np.array([["水", b"\xff\0"]], dtype=object))
    assert tensor.datatype == "BYTES"
    assert tensor.data == b"\x03\0\0\0" + "水".encode() + b"\x02\0\0\0\xff\0"
    assert to_numpy(tensor).tolist() == [["水".encode(), b"\xff\0"]]


def test_bf16_is_widened_exactly() -> None:
    # 1.0, -2.0 and the smallest step above 1.0 that bfloat16 has
    tensor = Tensor("x", "BF16", (3,), b"\x80\x3f\x00\xc0\x81\x3f")
    assert to_numpy(tensor).tolist() == [1.0, -2.0, 1.0078125]


@pytest.mark.parametrize("data", [b"\x01", b"\x05\0\0\0ab", b"\x00\0\0\0\x01"])
def test_damaged_byte_elements_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="BYTES"):
        decode_bytes(data)
    with pytest.raises(ValueError, match="BYTES"):
        count_bytes(data, 10)


def test_elements_are_counted_up_to_one_more_than_there_should_be() -> None:
    elements = from_numpy("x", np.array(["a", "", "水"], dtype=object)).data
    assert [count_bytes(elements, limit) for limit in (0, 1, 2, 3, 9)] == [1, 2, 3, 3, 3]
    assert count_bytes(memoryview(elements), 9) == 3
    assert count_bytes(elements + b"\x09\0\0\0", 2) == 3  # what follows is not looked at
    assert count_bytes(b"", 9) == 0


@pytest.mark.parametrize(
    "array", [np.arange(24.0).reshape(6, 4), np.array([[f"t{i}", "ü" * i] for i in range(6)], dtype=object)]
)
def test_rows_split_and_join_again(array: np.ndarray) -> None:  # type: ignore[type-arg]
    whole = from_numpy("x", array)
    parts = split_rows(whole, [1, 3, 2])
    assert [part.shape[0] for part in parts] == [1, 3, 2]
    assert to_numpy(parts[1]).tolist() == to_numpy(whole)[1:4].tolist()
    assert join_rows(parts) == Tensor("x", whole.datatype, whole.shape, bytes(whole.data))


def test_a_split_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        split_rows(from_numpy("x", np.zeros((3, 2))), [1, 1])
