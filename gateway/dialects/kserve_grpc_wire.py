"""A ``ModelInferRequest`` as it comes over the wire, looked through before it is parsed.

Parsing makes up to a hundred bytes of memory of two on the wire: an empty input, an empty parameter, a number of one
digit. Here only what may be many is counted, without making anything of it. Source: Protocol Buffers, Encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import Malformed, TooLarge

MAX_FIELDS = 4096
"""Fields of a message: its inputs, outputs, parameters and raw contents."""
MAX_TENSOR_FIELDS = 256
"""Fields of one input or output: name, type, shape, parameters, contents."""
MAX_TYPED_BYTES = 2**23
"""Of all inputs beside their raw contents: two million values of 32 bits. More is for raw contents."""

_HARMLESS = 2**16
"""Bytes of a message that becomes a few megabytes at the most."""
_INPUTS, _OUTPUTS = 5, 6
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


def parse_infer(body: bytes) -> Any:
    """``body`` as a ``ModelInferRequest``. Raises ``Malformed``, and ``TooLarge`` for more than is taken."""
    try:
        if len(body) > _HARMLESS:
            _look_through(body)
        return pb.ModelInferRequest.FromString(body)
    except (DecodeError, IndexError) as error:
        raise Malformed("the message is not what the method takes") from error


def _look_through(body: bytes) -> None:
    typed = 0
    for count, (number, begin, end) in enumerate(_fields(body, 0, len(body))):
        if count >= MAX_FIELDS:
            raise TooLarge(f"the message has more than {MAX_FIELDS} tensors and parameters")
        if number not in {_INPUTS, _OUTPUTS}:
            continue
        typed += end - begin
        if typed > MAX_TYPED_BYTES:
            raise TooLarge(f"the inputs have more than {MAX_TYPED_BYTES} bytes of typed contents; send them raw")
        for inner, _ in enumerate(_fields(body, begin, end)):
            if inner >= MAX_TENSOR_FIELDS:
                raise TooLarge(f"a tensor has more than {MAX_TENSOR_FIELDS} dimensions and parameters")


def _fields(body: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field between ``offset`` and ``end``; 0 for the number of a scalar."""
    while offset < end:
        tag, offset = _varint(body, offset)
        kind, number, begin = tag & 7, 0, offset
        if kind == _BYTES:
            size, begin = _varint(body, offset)
            number, offset = tag >> 3, begin + size
        elif kind == _VARINT:
            _, offset = _varint(body, offset)
        elif kind in _FIXED_SIZES:
            offset += _FIXED_SIZES[kind]
        else:
            raise DecodeError("groups are not used")
        if offset > end:
            raise DecodeError("a field is longer than its message")
        yield number, begin, offset


def _varint(body: bytes, offset: int) -> tuple[int, int]:
    byte = body[offset]
    if byte < 0x80:
        return byte, offset + 1
    value = shift = 0
    while byte >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        offset += 1
        if shift > 63:
            raise DecodeError("a number of more than 64 bits")
        byte = body[offset]
    return value | byte << shift, offset + 1
