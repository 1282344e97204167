"""Open Inference Protocol, inference requests over HTTP: pure functions from bytes to
:class:`InferenceRequest` and back, with Triton's binary tensor and classification extensions.

Shared by the HTTP and the gRPC dialect: what ``parameters`` may hold (:func:`clean_parameters`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from gateway.dialects.json import decode_json
from gateway.errors import Invalid, Malformed
from gateway.triton.signature import Signature
from gateway.triton.tensors import (
    ITEM_SIZE,
    NUMPY_TYPES,
    Array,
    element_count,
    encode_bytes,
    from_numpy,
    to_numpy,
)
from gateway.types import Datatype, InferenceRequest, InferenceResult, ParameterValue, Tensor

EXTENSIONS = (
    "classification", "model_repository", "model_repository(unload_dependents)", "schedule_policy",
    "model_configuration", "binary_tensor_data", "parameters", "statistics",
)  # fmt: skip
"""Those of Triton's extensions that both transports have, by Triton's names."""
MAX_CLASSES = 100_000
_KNOWN_HEADERS = 512
_KNOWN_BYTES = 1024
"""Headers up to this size are decoded once and remembered, the most recently used ones."""
_MAX_DIGITS = 18
"""Of a header's number: Python refuses to read one of thousands."""
_RESERVED_PREFIXES = ("sequence_", "shared_memory_", "triton_")
_RESERVED = frozenset({"headers"})
_OWN = frozenset({"priority", "timeout", "binary_data_output"})
CONTENT_TYPE = "content_type"
"""A hint of KServe's and MLServer's clients, to servers that decode by it: it changes nothing here."""


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class _Infer(msgspec.Struct, forbid_unknown_fields=True):
    """A null stands for a member that is not there, as KServe's own client writes it."""

    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None
    model_name: str | None = None


class OutputForm(msgspec.Struct, frozen=True):
    """How one output is to be written."""

    binary: bool
    classes: int = 0
    """Top-k classes instead of the tensor; 0: the tensor."""


class Encoding(msgspec.Struct, frozen=True):
    """How an answer is to be written: per output, and for the ones that were not named."""

    default: OutputForm = OutputForm(binary=False)
    outputs: dict[str, OutputForm] = {}

    def of(self, name: str) -> OutputForm:
        """The form of the output called ``name``."""
        return self.outputs.get(name, self.default)


class DecodedInfer(msgspec.Struct, frozen=True):
    """An inference request and what else its message said."""

    request: InferenceRequest
    encoding: Encoding
    timeout_us: int | None = None


class _Slot(msgspec.Struct, frozen=True):
    """A binary tensor of a message: ``size`` bytes from ``begin`` on, behind the JSON."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    begin: int
    size: int


class _Written(msgspec.Struct, frozen=True):
    """A tensor whose ``data`` stands in the JSON, as it was written there."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: list[Any]


class _Header(msgspec.Struct, frozen=True):
    """A message's JSON, checked; everything in it but its tensors."""

    inputs: tuple[_Written | _Slot, ...]
    binary_bytes: int
    model: str | None
    """Its name, where the message has it too."""
    outputs: tuple[str, ...]
    id: str
    parameters: dict[str, ParameterValue]
    priority: int
    timeout_us: int | None
    encoding: Encoding


def decode_infer(
    model: str, version: str, body: bytes, header_length: str | None, signature: Signature
) -> DecodedInfer:
    """Decode a request body.

    ``header_length`` is the header ``Inference-Header-Content-Length``: the bytes of JSON in front of
    the binary tensors, absent for a body that is JSON alone, ``0`` for a body that is the only tensor.
    What stands in the JSON becomes a tensor only where ``signature`` has one of its name, type and shape.
    Raises ``Malformed`` for what is not the protocol, ``Invalid`` for what the protocol or the model forbids.
    """
    if header_length is None:
        length = len(body)
    elif not (header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_DIGITS) or (
        int(header_length) > len(body)
    ):
        raise Malformed("Inference-Header-Content-Length is not a length within the body")
    else:
        length = int(header_length)
        if length == 0:
            return _decode_raw(model, version, body, signature)
    # In front of binary tensors a client writes the same header every time.
    decode = _decode_known if header_length is not None and length <= _KNOWN_BYTES else _decode_header
    header = decode(body[:length])
    if header.model is not None and header.model != model:
        raise Invalid("model_name is not the model of the path", param="model_name")
    tail = memoryview(body)[length:]
    tensors = []
    for item in header.inputs:
        if isinstance(item, _Written):
            tensors.append(_from_json(item, signature))
            continue
        end = item.begin + item.size
        if end > len(tail):
            raise Malformed(f"the body ends before the tensor {item.name!r}")
        tensors.append(Tensor(item.name, item.datatype, item.shape, tail[item.begin : end]))
    if header.binary_bytes != len(tail):
        raise Malformed(f"{len(tail) - header.binary_bytes} bytes follow the last tensor")
    request = InferenceRequest(
        model=model,
        version=version,
        inputs=tuple(tensors),
        outputs=header.outputs,
        id=header.id,
        parameters=header.parameters,
        priority=header.priority,
    )
    return DecodedInfer(request, header.encoding, header.timeout_us)


def _decode_header(raw: bytes) -> _Header:
    message = decode_json(raw, _Infer)
    inputs: list[_Written | _Slot] = []
    offset = 0
    for item in message.inputs:
        given = item.parameters or {}
        size = given.get("binary_data_size")
        if given:
            _only(given, ("binary_data_size", CONTENT_TYPE), f"input {item.name[:64]!r}")
        if size is None:
            if item.data is msgspec.UNSET:
                raise Invalid(f"input {item.name[:64]!r} has no data", param=item.name)
            inputs.append(_Written(item.name, _datatype(item), tuple(item.shape), item.data))
            continue
        if type(size) is not int or size < 0:
            raise Invalid(f"input {item.name!r}: binary_data_size is not a size", param=item.name)
        if item.data is not msgspec.UNSET:
            raise Invalid(f"input {item.name!r} has both data and binary_data_size", param=item.name)
        inputs.append(_Slot(item.name, _datatype(item), tuple(item.shape), offset, size))
        offset += size
    given = message.parameters or {}
    parameters, priority, timeout_us = clean_parameters(given)
    outputs = message.outputs or []
    if len({output.name for output in outputs}) != len(outputs):
        raise Invalid("an output is requested twice")
    binary = given.get("binary_data_output", False)
    if type(binary) is not bool:
        raise Invalid("binary_data_output is not true or false", param="binary_data_output")
    forms = {output.name: output_form(output.name, output.parameters or {}, default=binary) for output in outputs}
    return _Header(
        inputs=tuple(inputs),
        binary_bytes=offset,
        model=message.model_name,
        outputs=tuple(output.name for output in outputs),
        id=message.id or "",
        parameters=parameters,
        priority=priority,
        timeout_us=timeout_us,
        encoding=Encoding(OutputForm(binary), forms),
    )


_decode_known = lru_cache(maxsize=_KNOWN_HEADERS)(_decode_header)


def _decode_raw(model: str, version: str, body: bytes, signature: Signature) -> DecodedInfer:
    if len(signature.inputs) != 1:
        raise Invalid("a raw binary request needs a model with exactly one input")
    (spec,) = signature.inputs.values()
    shape = [1, *spec.shape[1:]] if signature.max_batch_size > 0 else list(spec.shape)
    if shape.count(-1) > 1:
        raise Invalid("a raw binary request needs an input with at most one variable dimension")
    data = body
    if spec.datatype == "BYTES":
        data = encode_bytes([body])
        shape = [1 if dimension == -1 else dimension for dimension in shape]
    elif -1 in shape:
        known = element_count([dimension for dimension in shape if dimension != -1]) * ITEM_SIZE[spec.datatype]
        if known == 0 or len(body) % known:
            raise Invalid(f"{len(body)} bytes do not fill the shape {shape} of {spec.name!r}", param=spec.name)
        shape[shape.index(-1)] = len(body) // known
    tensor = Tensor(spec.name, spec.datatype, tuple(shape), data)  # type: ignore[arg-type]
    return DecodedInfer(InferenceRequest(model, (tensor,), version), Encoding(OutputForm(binary=True)))


def clean_parameters(parameters: Mapping[str, Any]) -> tuple[dict[str, ParameterValue], int, int | None]:
    """(parameters for the model, priority, timeout in µs). Raises ``Invalid`` for reserved names."""
    kept: dict[str, ParameterValue] = {}
    for name, value in parameters.items():
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise Invalid(f"the parameter {name!r} is reserved", param=name)
        if name in _OWN:
            continue
        if not isinstance(value, bool | int | float | str):
            raise Invalid(f"the parameter {name!r} is not a string, number or boolean", param=name)
        if (isinstance(value, int) and not -(2**63) <= value < 2**63) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise Invalid(f"the parameter {name!r} is out of range", param=name)  # of what reaches Triton
        kept[name] = value
    return kept, _natural(parameters, "priority", 2**32 - 1) or 0, _natural(parameters, "timeout", 2**63 - 1)


def _natural(parameters: Mapping[str, Any], name: str, maximum: int) -> int | None:
    if name not in parameters:
        return None
    value = parameters[name]
    if type(value) is not int or not 0 <= value <= maximum:
        raise Invalid(f"the parameter {name!r} is not a whole number in range", param=name)
    return value or None


def _only(parameters: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise Invalid(f"{what}: the parameter {unknown[0]!r} is not supported", param=unknown[0])


def output_form(
    name: str,
    parameters: Mapping[str, Any],
    known: Sequence[str] = ("binary_data", "classification", CONTENT_TYPE),
    *,
    default: bool = False,
) -> OutputForm:
    """How the output ``name`` is to be written; ``default``: as binary data. Raises ``Invalid``."""
    _only(parameters, known, f"output {name[:64]!r}")
    binary = parameters.get("binary_data", default)
    classes = parameters.get("classification", 0)
    if type(binary) is not bool:
        raise Invalid(f"output {name[:64]!r}: binary_data is not true or false", param=name)
    if type(classes) is not int or not 0 <= classes <= MAX_CLASSES:
        raise Invalid(f"output {name[:64]!r}: classification is not a number of classes", param=name)
    return OutputForm(binary, classes)


def _datatype(item: _Input) -> Any:
    if item.datatype not in ITEM_SIZE and item.datatype != "BYTES":
        raise Invalid(f"input {item.name!r} has the unknown datatype {item.datatype[:40]!r}", param=item.name)
    return item.datatype


def _from_json(item: _Written, signature: Signature) -> Tensor:
    count = signature.expect(item.name, item.datatype, item.shape)
    return Tensor(item.name, item.datatype, item.shape, raw_data(item.data, item.datatype, item.name, count))


def raw_data(data: list[Any], datatype: str, name: str, count: int) -> bytes:
    """``data`` of the input ``name`` (``count`` values, nested or flat) as the raw bytes of a ``datatype`` tensor.

    Exactly these values, floats rounded. Raises ``Invalid``; for another number of values before one is converted.
    """
    if datatype == "BF16":
        raise Invalid(f"input {name!r}: BF16 travels as binary data only", param=name)
    values, kinds = _flat(data)
    if len(values) != count:
        raise Invalid(f"input {name!r} has {len(values)} values, its shape says {count}", param=name)
    if not kinds <= _KINDS[datatype]:
        raise Invalid(f"input {name!r}: data does not hold {datatype} values", param=name)
    return encode_bytes(values) if datatype == "BYTES" else _numbers(values, datatype, name)


def _flat(data: list[Any]) -> tuple[list[Any], set[type]]:
    """The values in lists of lists, row by row, and of which types they are; a list among values is one of them."""
    kinds = set(map(type, data))
    while kinds == _NESTED:
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    return data, kinds


_NESTED = {list}
_WHOLE, _REAL = frozenset({int}), frozenset({int, float})
_KINDS: dict[str, frozenset[type]] = {
    **{name: _REAL if dtype.kind == "f" else _WHOLE for name, dtype in NUMPY_TYPES.items()},
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
}
"""What JSON says a value of each datatype as: true is no number, and 1.5 no whole one."""


def _numbers(values: list[Any], datatype: str, name: str) -> bytes:
    wanted = NUMPY_TYPES[datatype]
    try:
        if wanted.kind == "u" and wanted.itemsize == 8 and min(values) >= 0:
            return np.array(values, dtype=wanted).tobytes()
        array = np.array(values, dtype=_WIDEST[wanted.kind])
    except OverflowError as error:
        raise _out_of_range(datatype, name) from error
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(wanted, copy=False)
        if not np.isfinite(array).all():  # JSON has no infinity: it did not fit
            raise _out_of_range(datatype, name)
    elif wanted.kind != "b":
        bounds = np.iinfo(wanted)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise _out_of_range(datatype, name)
    return array.astype(wanted, copy=False).tobytes()


_WIDEST = {"b": np.dtype(np.bool_), "u": np.dtype("<i8"), "i": np.dtype("<i8"), "f": np.dtype("<f8")}
"""What Python's values are read as before they are looked at."""


def _out_of_range(datatype: str, name: str) -> Invalid:
    return Invalid(f"input {name!r}: a value is out of range for {datatype}", param=name)


# --- answers


def encode_infer(
    result: InferenceResult,
    request: InferenceRequest,
    encoding: Encoding,
    labels: Callable[[str], Sequence[str]],
    *,
    batched: bool,
) -> tuple[bytes, int | None]:
    """(body, bytes of JSON in front of binary tensors or None if there is no binary tensor).

    ``labels``: those of an output's classes.
    """
    outputs, tail = [], []
    for tensor in result.outputs:
        form = encoding.of(tensor.name)
        written = classify(tensor, form.classes, labels(tensor.name), batched=batched) if form.classes else tensor
        entry: dict[str, Any] = {"name": written.name, "datatype": written.datatype, "shape": written.shape}
        if form.binary:
            entry["parameters"] = {"binary_data_size": len(written.data)}
            tail.append(written.data)
        else:
            entry["data"] = _to_json(written)
        outputs.append(entry)
    message: dict[str, Any] = {"model_name": result.model, "model_version": result.version}
    if request.id:
        message["id"] = request.id
    if result.parameters:
        message["parameters"] = result.parameters
    message["outputs"] = outputs
    header = msgspec.json.encode(message)
    if not tail and not any(encoding.of(tensor.name).binary for tensor in result.outputs):
        return header, None
    return b"".join((header, *tail)), len(header)


def _to_json(tensor: Tensor) -> list[Any]:
    array = to_numpy(tensor).reshape(-1)
    if tensor.datatype == "BYTES":
        return [element.decode("utf-8", errors="replace") for element in array]
    values: list[Any] = array.tolist()
    return values


def classify(tensor: Tensor, classes: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """Triton's classification extension: BYTES ``[batch, k]`` of ``value:index[:label]``, best first."""
    if tensor.datatype == "BYTES":
        raise Invalid(f"output {tensor.name!r} is BYTES and cannot be classified", param=tensor.name)
    array = to_numpy(tensor)
    rows = array.reshape(array.shape[0], -1) if batched else array.reshape(1, -1)
    count = min(classes, rows.shape[1])
    best = _descending(rows)[:, :count]
    texts = np.empty((rows.shape[0], count), dtype=object)
    for i, indices in enumerate(best):
        for j, index in enumerate(indices):
            value = rows[i, index]
            number = f"{float(value):f}" if rows.dtype.kind == "f" else str(int(value))
            label = f":{labels[index]}" if index < len(labels) else ""
            texts[i, j] = f"{number}:{index}{label}"
    return from_numpy(tensor.name, texts if batched else texts[0])


def _descending(rows: Array) -> Array:
    """Indices of each row's values, the largest first; of equal ones the first comes first, and NaN last."""
    if rows.dtype.kind == "f":
        return np.argsort(-rows, axis=1, kind="stable")
    # Turned round: -x is not there for the least of a type, and for none of an unsigned one.
    turned = np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return rows.shape[1] - 1 - turned
