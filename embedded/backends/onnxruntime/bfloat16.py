"""BF16, which numpy lacks: between Triton and ONNX Runtime it is its bits, as ``uint16``.

Triton hands BF16 over as DLPack only. torch reads and makes that whatever the version of ONNX Runtime, and only models
with such a tensor wait for its import.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import triton_python_backend_utils as pb_utils

from embedded.backends.common.config import ConfigError, ModelSpec
from embedded.backends.common.execution import Feeds
from embedded.backends.onnxruntime.engine import OnnxEngine

ONNX_BFLOAT16 = 16
"""``TensorProto.DataType.BFLOAT16``."""


class Bfloat16Engine(OnnxEngine):
    """A session some of whose tensors are BF16."""

    def __init__(self, spec: ModelSpec) -> None:
        """As :class:`OnnxEngine`. Raises :class:`ConfigError` beside inputs of text, too: no such value can be made."""
        super().__init__(spec)
        if any(tensor.data_type == "STRING" for tensor in spec.inputs):
            raise ConfigError(f"{spec.file} has BF16 beside inputs of STRING, which ONNX Runtime's values cannot hold")
        self._names = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.data_type == "BF16"}

    def read(self, tensor: Any) -> Any:
        """A view of the request's memory, of BF16 too."""
        if tensor.name() not in self._names:
            return super().read(tensor)
        return torch.utils.dlpack.from_dlpack(tensor).view(torch.int16).numpy().view(np.uint16)

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> list[Any]:
        """One session run on ONNX Runtime's own values, which hold dtypes that numpy lacks."""
        values = {name: self._value(name, array) for name, array in feeds.items()}
        answers = self._session.run_with_ort_values(list(outputs), values)
        return [
            _bits(answer) if name in self._names else answer.numpy()
            for name, answer in zip(outputs, answers, strict=True)
        ]

    def write(self, name: str, array: Any) -> Any:
        """Copies into the shared memory that the server reads."""
        if name not in self._names:
            return super().write(name, array)
        values = torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
        return pb_utils.Tensor.from_dlpack(name, values)

    def _value(self, name: str, array: Any) -> ort.OrtValue:
        if name in self._names:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)


def _bits(value: ort.OrtValue) -> Any:
    """A copy of a session's output, of which ONNX Runtime makes no numpy array."""
    bits = np.empty(value.shape(), np.uint16)
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return bits
