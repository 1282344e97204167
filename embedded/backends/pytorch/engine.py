"""A TorchScript file in ``torch.jit``, as a Triton model with libtorch's naming conventions.

Source: the parameters, and the rules from names to arguments, are those of NVIDIA's ``pytorch`` (libtorch) backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from embedded.backends.common.config import ConfigError, ModelSpec, TensorSpec
from embedded.backends.common.execution import Feeds
from embedded.backends.common.text import decode_text
from embedded.backends.pytorch.modes import execution_mode, grad_mode, set_threads

TORCH_TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
INDEX_MARK = "__"


class TorchEngine:
    """One TorchScript module. It is loaded from the repository's file only, never from anything a request brings."""

    def __init__(self, spec: ModelSpec) -> None:
        """Load ``spec.file``. Raises :class:`ConfigError` when it is corrupt or its arguments do not fit the names."""
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.data_type not in TORCH_TYPES and tensor.data_type != "STRING":
                raise ConfigError(f"tensor {tensor.name!r} is {tensor.data_type}, which TorchScript models cannot have")
        set_threads(spec)
        self._device = torch.device("cpu")
        if spec.cuda_device is not None and torch.cuda.is_available():
            self._device = torch.device("cuda", spec.cuda_device)
        self._grad_mode = grad_mode(spec)
        self._execution = execution_mode(spec)
        if spec.flag("DISABLE_CUDNN", default=False):
            torch.backends.cudnn.enabled = False
        try:
            module = torch.jit.load(str(spec.file), map_location=self._device)  # type: ignore[no-untyped-call]
        except Exception as error:  # torch raises RuntimeError, ValueError, zip errors, with stacks in their text
            raise ConfigError(f"{spec.file} cannot be loaded: {_short(error)}") from error
        self._module = module.eval()
        self._arguments = bind_inputs(spec, forward_arguments(module))
        self._output_index = bind_outputs(spec)
        self._specs = {tensor.name: tensor for tensor in spec.outputs}
        self._batched = spec.batched
        self._strings = {tensor.name for tensor in spec.inputs if tensor.data_type == "STRING"}
        self._bfloat16 = {tensor.name for tensor in spec.inputs if tensor.data_type == "BF16"}  # numpy has no such type

    def read(self, tensor: Any) -> Any:
        """A view of the request's memory; BYTES stay an array of ``str`` objects."""
        if tensor.name() in self._strings:
            return decode_text(tensor.name(), tensor.as_numpy())
        if tensor.name() in self._bfloat16:
            return torch.utils.dlpack.from_dlpack(tensor)
        return torch.from_numpy(tensor.as_numpy())

    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """Along the batch dimension."""
        return np.concatenate(arrays) if isinstance(arrays[0], np.ndarray) else torch.cat(list(arrays))

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> list[Any]:
        """One call of ``forward``."""
        arguments = [self._argument(feeds, name, default) for name, default in self._arguments]
        with self._grad_mode(), self._execution():
            answer = self._module(*arguments)
        values = list(answer) if isinstance(answer, (tuple, list)) and not _is_text(answer) else [answer]
        rows = int(next(iter(feeds.values())).shape[0]) if self._batched and feeds else None
        return [self._output(name, values, rows) for name in outputs]

    def write(self, name: str, array: Any) -> Any:
        """Copies into the shared memory that the server reads."""
        if isinstance(array, np.ndarray):
            return pb_utils.Tensor(name, array)
        if array.dtype == torch.bfloat16:
            return pb_utils.Tensor.from_dlpack(name, array.contiguous())
        return pb_utils.Tensor(name, array.numpy())

    def _argument(self, feeds: Feeds, name: str | None, default: Any) -> Any:
        value = feeds.get(name) if name is not None else None
        if value is None:
            return default
        return value.ravel().tolist() if isinstance(value, np.ndarray) else value.to(self._device)

    def _output(self, name: str, values: Sequence[Any], rows: int | None) -> Any:
        index, spec = self._output_index[name], self._specs[name]
        if index >= len(values):
            raise ValueError(f"output {name!r} is number {index}, but forward() returned {len(values)}")
        value = values[index]
        if spec.data_type == "STRING":
            return _text_output(spec, [value] if isinstance(value, str) else list(value), rows)
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"output {name!r} of forward() is a {type(value).__name__}, not a tensor")
        if value.dtype != TORCH_TYPES[spec.data_type]:
            raise TypeError(f"output {name!r} is {value.dtype} but {spec.data_type} in the configuration")
        return value.detach().cpu()


def forward_arguments(module: Any) -> list[tuple[str, Any]]:
    """Names and defaults of ``forward``'s arguments; an argument without a default has ``None``."""
    schema = module.forward.schema
    return [
        (argument.name, argument.default_value if argument.has_default_value() else None)
        for argument in schema.arguments[1:]
    ]


def bind_inputs(spec: ModelSpec, arguments: Sequence[tuple[str, Any]]) -> list[tuple[str | None, Any]]:
    """For each argument of ``forward``: the input that feeds it (``None``: none does) and its default.

    All inputs are named as arguments, or all as ``<name>__<index>``, or they are taken in the configuration's order.
    Raises :class:`ConfigError` when an index is out of range or is used twice.
    """
    names = [tensor.name for tensor in spec.inputs]
    known = [name for name, _ in arguments]
    if all(name in known for name in names):
        positions = {known.index(name): name for name in names}
    else:
        positions = _positions("input", spec.inputs, spec)
    too_large = sorted(name for position, name in positions.items() if position >= len(arguments))
    if too_large:
        raise ConfigError(f"inputs {too_large} of model {spec.name!r}: forward() takes {len(arguments)} ({known})")
    return [(positions.get(position), default) for position, (_, default) in enumerate(arguments)]


def bind_outputs(spec: ModelSpec) -> dict[str, int]:
    """Position of each output in what ``forward`` returns: its ``__<index>``, or its place in the configuration."""
    return {name: position for position, name in _positions("output", spec.outputs, spec).items()}


def _positions(kind: str, tensors: Sequence[TensorSpec], spec: ModelSpec) -> dict[int, str]:
    indices = [tensor.name.rpartition(INDEX_MARK)[2] for tensor in tensors]
    numbered = all(
        INDEX_MARK in tensor.name and index.isdigit() for tensor, index in zip(tensors, indices, strict=True)
    )
    places = [int(index) for index in indices] if numbered else list(range(len(tensors)))
    if len(set(places)) != len(places):
        raise ConfigError(f"two {kind}s of model {spec.name!r} have the same index")
    return {place: tensor.name for place, tensor in zip(places, tensors, strict=True)}


def _text_output(spec: TensorSpec, texts: Sequence[str], rows: int | None) -> Any:
    """TorchScript's flat list, of a batch as ``[rows, *dims]``."""
    array = np.array(texts, dtype=np.object_)
    if rows is None:
        return array
    try:
        return array.reshape(rows, *spec.dims)
    except ValueError as error:
        raise ValueError(
            f"output {spec.name!r} is {len(texts)} strings, which do not make {rows} rows of {list(spec.dims)}"
        ) from error


def _is_text(answer: Sequence[Any]) -> bool:
    return bool(answer) and all(isinstance(value, str) for value in answer)


def _short(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
