"""Whether Triton's answer is what the model promises: nothing behind the pool looks for broken tensors again.

A damaged answer is the upstream's fault, 502, whatever it is damaged in; without this it would surface as a defect of
ours where somebody first computes with it, or leave as a good answer where nobody does.
"""

from __future__ import annotations

import struct

from gateway.errors import BadUpstream
from gateway.triton.signature import Signature
from gateway.triton.tensors import ITEM_SIZE, element_count
from gateway.types import InferenceRequest, InferenceResult, Tensor


class UnlikeSignature(BadUpstream):
    """The answer is whole, and not what the model promises: its own fault, or it was loaded anew meanwhile."""


def check_answer(result: InferenceResult, request: InferenceRequest, signature: Signature | None) -> None:
    """Raise :class:`BadUpstream` unless ``result`` is an answer to ``request``.

    Data fill their shapes, there is a row for each one that was sent, and outputs are those of ``signature`` (None: it
    is not known) and those that were asked for.
    """
    check_part(result, request, signature)
    if signature is not None and signature.max_batch_size > 0:
        rows = request.rows
        for tensor in result.outputs:
            if tensor.shape[0] != rows:
                raise UnlikeSignature("the model answered with another number of rows than it was asked")
    if request.outputs and {tensor.name for tensor in result.outputs} != set(request.outputs):
        raise UnlikeSignature("the model answered with other outputs than it was asked for")


def check_part(result: InferenceResult, request: InferenceRequest, signature: Signature | None) -> None:
    """The same for one of several answers: it may have fewer rows, and fewer outputs."""
    if result.model != request.model:
        raise BadUpstream("the inference server answered another request")
    for tensor in result.outputs:
        if not _is_whole(tensor):
            raise BadUpstream("the inference server's answer is damaged: an output does not fill its shape")
        if signature is not None and not _is_like(tensor, signature):
            raise UnlikeSignature("the model answered with an output that it does not promise")
    if len(result.outputs) > 1 and len({tensor.name for tensor in result.outputs}) < len(result.outputs):
        raise BadUpstream("the model answered with an output twice")


def _is_whole(tensor: Tensor) -> bool:
    shape = tensor.shape
    if shape and min(shape) < 0:
        return False
    count = element_count(shape)
    if tensor.datatype == "BYTES":
        return _holds_elements(tensor.data, count)
    size = ITEM_SIZE.get(tensor.datatype)
    return size is not None and len(tensor.data) == count * size


def _holds_elements(data: bytes | bytearray | memoryview, count: int) -> bool:
    """Whether ``data`` is ``count`` BYTES elements and nothing else."""
    end, offset, length = len(data), 0, struct.Struct("<I")
    if count * length.size > end:
        return False
    for _ in range(count):
        if offset + length.size > end:
            return False
        offset += length.size + length.unpack_from(data, offset)[0]
    return offset == end


def _is_like(tensor: Tensor, signature: Signature) -> bool:
    expected = signature.outputs.get(tensor.name)
    if expected is None or tensor.datatype != expected.datatype:
        return False
    shape = tensor.shape
    if expected.reshaped:
        return bool(shape) or signature.max_batch_size == 0
    if len(shape) != len(expected.shape):
        return False
    for want, have in zip(expected.shape, shape, strict=True):  # noqa: SIM110 - a generator would cost as much again
        if want not in (-1, have):
            return False
    return True
