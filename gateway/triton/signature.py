"""What a served model takes and gives, as Triton's configuration says it: requests are checked
against it before they are sent, because Triton's own answers to bad ones are not the caller's truth
(500 for a negative dimension, 400 for a dead stub).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.errors import Invalid
from gateway.triton.tensors import ITEM_SIZE, count_bytes, element_count
from gateway.types import InferenceRequest, Tensor

MAX_RANK = 16
MAX_ELEMENTS = 2**31 - 1
MAX_TEXTS = 2**20
"""Elements of a BYTES tensor: each is looked at, and takes four bytes at the least."""
_KNOWN_FORMS = 256


@dataclass(slots=True, frozen=True)
class TensorSignature:
    """One input or output; ``shape`` as a request carries it: batch dimension (-1) in front if there is one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    reshaped: bool = False
    """``config.pbtxt`` reshapes it: only the number of elements is known."""
    label_file: str = ""
    """Of an output: the file in the model's folder whose lines are its classes."""


@dataclass(slots=True, frozen=True)
class Signature:
    """Inputs, outputs and batching of one version of a model."""

    model: str
    inputs: dict[str, TensorSignature]
    outputs: dict[str, TensorSignature]
    max_batch_size: int
    dynamic_batching: bool = False
    """Rows of different requests may share an execution: the condition for coalescing."""
    decoupled: bool = False
    stateful: bool = False
    instances: int = 1
    """How many run side by side on one server."""
    _good: set[Any] = field(default_factory=set, repr=False, compare=False)
    """Forms of requests that were found to be right: names, types, shapes and sizes."""

    @property
    def coalescible(self) -> bool:
        """Whether requests may be joined along their first dimension."""
        return self.max_batch_size > 1 and self.dynamic_batching and not (self.decoupled or self.stateful)

    def check(self, request: InferenceRequest) -> None:
        """Raise :class:`~gateway.errors.Invalid` for the first thing wrong with ``request``."""
        form = tuple([(tensor.name, tensor.datatype, tensor.shape, len(tensor.data)) for tensor in request.inputs])
        if (form, request.outputs) in self._good:
            return
        self._check(request)
        if all(tensor.datatype != "BYTES" for tensor in request.inputs):  # those have lengths in their data
            if len(self._good) >= _KNOWN_FORMS:
                self._good.clear()
            self._good.add((form, request.outputs))

    def _check(self, request: InferenceRequest) -> None:
        seen: set[str] = set()
        batch: int | None = None
        for tensor in request.inputs:
            count = self.expect(tensor.name, tensor.datatype, tensor.shape)
            if tensor.name in seen:
                raise Invalid(f"input {tensor.name!r} is given twice", param=tensor.name)
            seen.add(tensor.name)
            _check_data(tensor, count)
            if self.max_batch_size > 0:
                if batch is not None and tensor.shape[0] != batch:
                    raise Invalid(
                        f"input {tensor.name!r} has batch {tensor.shape[0]}, others have {batch}", param=tensor.name
                    )
                batch = tensor.shape[0]
        missing = [name for name, expected in self.inputs.items() if not expected.optional and name not in seen]
        if missing:
            raise Invalid(f"missing input {', '.join(map(repr, missing))}", param=missing[0])
        self._check_outputs(request.outputs)

    def expect(self, name: str, datatype: str, shape: Sequence[int]) -> int:
        """How many elements the data of such an input has to hold.

        Raises :class:`~gateway.errors.Invalid` where the model takes no such input: before its data, which may be
        much, is looked at.
        """
        expected = self.inputs.get(name)
        if expected is None:
            raise Invalid(f"unexpected input {name[:64]!r}; the model takes {_names(self.inputs)}", param=name)
        count = _check_form(datatype, shape, expected)
        if 0 < self.max_batch_size < shape[0]:
            raise Invalid(f"batch {shape[0]} is larger than the model's max_batch_size {self.max_batch_size}")
        return count

    def _check_outputs(self, names: Sequence[str]) -> None:
        if len(set(names)) != len(names):
            raise Invalid("an output is requested twice")
        for name in names:
            if name not in self.outputs:
                raise Invalid(f"unknown output {name!r}; the model gives {_names(self.outputs)}", param=name)


def _check_form(datatype: str, shape: Sequence[int], expected: TensorSignature) -> int:
    """The number of elements. Raises ``Invalid`` where ``expected`` is of another type or shape."""
    name = expected.name
    if datatype != expected.datatype:
        raise Invalid(f"input {name!r} is {datatype[:40]}, the model takes {expected.datatype}", param=name)
    if len(shape) > MAX_RANK or any(dimension < 1 for dimension in shape):
        raise Invalid(f"input {name!r} has a shape with dimensions that are not positive, or too many", param=name)
    if (expected.reshaped and not shape) or (
        not expected.reshaped
        and (
            len(shape) != len(expected.shape)
            or any(want not in (-1, have) for have, want in zip(shape, expected.shape, strict=True))
        )
    ):
        raise Invalid(f"input {name!r} has shape {list(shape)}, the model takes {list(expected.shape)}", param=name)
    count = element_count(shape)
    if count > (MAX_TEXTS if datatype == "BYTES" else MAX_ELEMENTS):
        raise Invalid(f"input {name!r} has too many elements", param=name)
    return count


def _check_data(tensor: Tensor, count: int) -> None:
    """Raise ``Invalid`` unless the data of ``tensor`` is ``count`` elements."""
    name = tensor.name
    if tensor.datatype == "BYTES":
        try:
            have = count_bytes(tensor.data, count)
        except ValueError as error:
            raise Invalid(f"input {name!r}: {error}", param=name) from error
        if have != count:
            more = "more" if have > count else have
            raise Invalid(f"input {name!r} has {more} elements, its shape says {count}", param=name)
    elif len(tensor.data) != count * ITEM_SIZE[tensor.datatype]:
        raise Invalid(
            f"input {name!r} has {len(tensor.data)} bytes, its shape says {count * ITEM_SIZE[tensor.datatype]}",
            param=name,
        )


def _names(tensors: dict[str, TensorSignature]) -> str:
    return ", ".join(map(repr, tensors)) or "none"


def from_config(config: Any) -> Signature:
    """The signature in a ``ModelConfig`` message (``ModelConfigResponse.config``)."""
    batched = config.max_batch_size > 0

    def tensor(spec: Any, *, optional: bool) -> TensorSignature:
        datatype = _datatype(spec.data_type)
        reshaped = spec.HasField("reshape")
        shape = tuple(spec.dims)
        return TensorSignature(spec.name, datatype, (-1, *shape) if batched else shape, optional, reshaped)

    def output(spec: Any) -> TensorSignature:
        return replace(tensor(spec, optional=False), label_file=spec.label_filename)

    return Signature(
        model=config.name,
        inputs={spec.name: tensor(spec, optional=spec.optional) for spec in config.input},
        outputs={spec.name: output(spec) for spec in config.output},
        max_batch_size=config.max_batch_size,
        dynamic_batching=config.HasField("dynamic_batching"),
        decoupled=config.model_transaction_policy.decoupled,
        stateful=config.HasField("sequence_batching"),
        instances=max(1, sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)),
    )


_CONFIG_DATATYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES", "BF16",
)  # fmt: skip


def _datatype(value: int) -> str:
    return _CONFIG_DATATYPES[value]
