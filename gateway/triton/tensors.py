"""Between numpy and the protocol's raw tensor bytes (Open Inference Protocol, binary tensor extension)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.types import Datatype, Tensor

Array = npt.NDArray[Any]

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes that numpy has; BYTES and BF16 are handled apart."""

ITEM_SIZE: dict[str, int] = {name: dtype.itemsize for name, dtype in NUMPY_TYPES.items()} | {"BF16": 2}
"""Bytes an element takes; BYTES has no fixed size."""

_LENGTH = struct.Struct("<I")

_DATATYPES: dict[str, Datatype] = {
    "b1": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64",
    "i1": "INT8", "i2": "INT16", "i4": "INT32", "i8": "INT64", "f2": "FP16", "f4": "FP32", "f8": "FP64",
}  # fmt: skip


def element_count(shape: Sequence[int]) -> int:
    """Elements of a tensor of ``shape``: exact, however large (1 for a scalar)."""
    return math.prod(shape)


def to_numpy(tensor: Tensor) -> Array:
    """``tensor`` as an array of its shape. BYTES becomes an object array of ``bytes``; BF16 is widened
    to float32, exactly. Fixed-size types share the tensor's memory and are read-only.

    Raises ``ValueError`` if the data does not fill the shape.
    """
    if tensor.datatype == "BYTES":
        elements = decode_bytes(tensor.data)
        if len(elements) != element_count(tensor.shape):
            raise ValueError(f"{tensor.name}: {len(elements)} elements for shape {list(tensor.shape)}")
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(tensor.shape)
    if tensor.datatype == "BF16":
        wide = np.frombuffer(tensor.data, dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tensor.shape)
    return np.frombuffer(tensor.data, dtype=NUMPY_TYPES[tensor.datatype]).reshape(tensor.shape)


def from_numpy(name: str, array: Array) -> Tensor:
    """A tensor of ``array``; an object or string array becomes BYTES (``str`` elements as UTF-8)."""
    if array.dtype.kind in "OSU":
        return Tensor(name, "BYTES", tuple(array.shape), encode_bytes(array.reshape(-1).tolist()))
    datatype = _DATATYPES[f"{array.dtype.kind}{array.dtype.itemsize}"]
    little_endian = array.astype(NUMPY_TYPES[datatype], copy=False)
    return Tensor(name, datatype, tuple(array.shape), little_endian.tobytes())


def encode_bytes(elements: Sequence[bytes | str]) -> bytes:
    """BYTES elements: each a little-endian uint32 length and the bytes."""
    encoded = bytearray()
    for element in elements:
        raw = element.encode() if isinstance(element, str) else element
        encoded += _LENGTH.pack(len(raw))
        encoded += raw
    return bytes(encoded)


def count_bytes(data: bytes | bytearray | memoryview, limit: int) -> int:
    """How many elements a BYTES tensor has; ``limit + 1`` where there are more: no further is looked.

    Raises ``ValueError`` when a length runs past the end.
    """
    read, end, offset, count = _LENGTH.unpack_from, len(data), 0, 0
    while offset < end and count <= limit:
        if offset + 4 > end:
            raise ValueError("truncated length of a BYTES element")
        offset += 4 + read(data, offset)[0]
        if offset > end:
            raise ValueError("a BYTES element is longer than the tensor")
        count += 1
    return count


def decode_bytes(data: bytes | bytearray | memoryview) -> list[bytes]:
    """The elements of a BYTES tensor. Raises ``ValueError`` when a length runs past the end."""
    view, elements, offset = memoryview(data), [], 0
    while offset < len(view):
        if offset + 4 > len(view):
            raise ValueError("truncated length of a BYTES element")
        (length,) = _LENGTH.unpack_from(view, offset)
        offset += 4
        if offset + length > len(view):
            raise ValueError("a BYTES element is longer than the tensor")
        elements.append(bytes(view[offset : offset + length]))
        offset += length
    return elements


def split_rows(tensor: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """Cut ``tensor`` along its first dimension into parts of ``rows`` rows each.

    Raises ``ValueError`` if the parts do not add up to the tensor.
    """
    total = tensor.shape[0] if tensor.shape else 0
    if sum(rows) != total:
        raise ValueError(f"{tensor.name}: {total} rows cannot be cut into {list(rows)}")
    view = memoryview(tensor.data)
    ends: list[int] = []
    if tensor.datatype == "BYTES":
        per_row, offset = element_count(tensor.shape[1:]), 0
        for count in rows:
            for _ in range(count * per_row):
                if offset + 4 > len(view):
                    raise ValueError(f"{tensor.name}: fewer BYTES elements than its shape says")
                offset += 4 + _LENGTH.unpack_from(view, offset)[0]
            ends.append(offset)
    else:
        row_bytes, done = len(view) // total if total else 0, 0
        for count in rows:
            done += count
            ends.append(done * row_bytes)
    parts, begin = [], 0
    for count, end in zip(rows, ends, strict=True):
        parts.append(Tensor(tensor.name, tensor.datatype, (count, *tensor.shape[1:]), view[begin:end]))
        begin = end
    return parts


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one name, type and row shape, joined along the first dimension."""
    first = tensors[0]
    rows = sum(tensor.shape[0] for tensor in tensors)
    return Tensor(first.name, first.datatype, (rows, *first.shape[1:]), b"".join(t.data for t in tensors))
