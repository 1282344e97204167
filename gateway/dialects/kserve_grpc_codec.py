"""Open Inference Protocol, inference requests over gRPC: from messages to :class:`InferenceRequest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.dialects.kserve_codec import CONTENT_TYPE, clean_parameters, output_form
from gateway.errors import Invalid, Malformed
from gateway.triton.messages import get_parameters
from gateway.triton.signature import Signature
from gateway.triton.tensors import ITEM_SIZE, NUMPY_TYPES, encode_bytes
from gateway.types import InferenceRequest, Tensor

_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_OF_OUTPUTS = ("classification", CONTENT_TYPE)


@dataclass(slots=True, frozen=True)
class DecodedRequest:
    """An inference request and what else its message said."""

    request: InferenceRequest
    classes: dict[str, int]
    """Outputs of which the best classes are wanted, and how many; 0: the tensor itself."""
    timeout_us: int | None = None


def decode_request(message: Any, signature: Signature) -> DecodedRequest:
    """``message`` (a ``ModelInferRequest``); typed contents become a tensor only where ``signature`` has one of its
    name, type, shape and number of values. Raises ``Malformed`` or ``Invalid``.
    """
    parameters, priority, timeout_us = clean_parameters(get_parameters(message.parameters))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Malformed(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    tensors = []
    for index, item in enumerate(message.inputs):
        if item.datatype not in ITEM_SIZE and item.datatype != "BYTES":
            raise Invalid(f"input {item.name[:64]!r} has an unknown datatype", param=item.name)
        if item.parameters and set(item.parameters) != {CONTENT_TYPE}:
            raise Invalid(f"input {item.name[:64]!r}: parameters of inputs are not supported", param=item.name)
        if raw and item.HasField("contents"):
            raise Invalid(f"input {item.name[:64]!r} has raw and typed contents", param=item.name)
        data = raw[index] if raw else _typed_contents(item, signature)
        tensors.append(Tensor(item.name, item.datatype, tuple(item.shape), data))
    request = InferenceRequest(
        model=message.model_name,
        version=message.model_version,
        inputs=tuple(tensors),
        outputs=tuple(output.name for output in message.outputs),
        id=message.id,
        parameters=parameters,
        priority=priority,
    )
    classes = {
        output.name: output_form(
            output.name, get_parameters(output.parameters), ("classification", CONTENT_TYPE)
        ).classes
        for output in message.outputs
        if output.parameters
    }
    return DecodedRequest(request, classes, timeout_us)


def _typed_contents(item: Any, signature: Signature) -> bytes:
    field = _CONTENTS.get(item.datatype)
    if field is None:
        raise Invalid(f"input {item.name[:64]!r}: {item.datatype} travels as raw contents only", param=item.name)
    count = signature.expect(item.name, item.datatype, tuple(item.shape))
    values = getattr(item.contents, field)
    if len(values) != count:
        raise Invalid(f"input {item.name!r} has {len(values)} values, its shape says {count}", param=item.name)
    if item.datatype == "BYTES":
        return encode_bytes(values)
    wanted = NUMPY_TYPES[item.datatype]
    if wanted.kind in "iu" and wanted.itemsize < 4:  # 8 and 16 bits travel in fields of 32
        bounds, wide = np.iinfo(wanted), np.fromiter(values, dtype=np.int64, count=count)
        if int(wide.min()) < bounds.min or int(wide.max()) > bounds.max:
            raise Invalid(f"input {item.name!r}: a value is out of range for {item.datatype}", param=item.name)
        return wide.astype(wanted).tobytes()
    return np.fromiter(values, dtype=wanted, count=count).tobytes()
