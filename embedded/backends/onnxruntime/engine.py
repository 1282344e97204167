"""An ONNX file in ONNX Runtime, as a Triton model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from embedded.backends.common.config import ConfigError, ModelSpec, TensorSpec, default_intra_op_threads
from embedded.backends.common.execution import Feeds
from embedded.backends.common.text import decode_text

TRITON_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "STRING",
}
# optimization.graph.level of config.pbtxt, as NVIDIA's backend documents it; 0 (absent): all optimizations
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {0: ort.ExecutionMode.ORT_SEQUENTIAL, 1: ort.ExecutionMode.ORT_PARALLEL}


class OnnxEngine:
    """One ONNX Runtime session. Parameters of ``config.pbtxt`` are those of NVIDIA's ``onnxruntime`` backend."""

    def __init__(self, spec: ModelSpec) -> None:
        """Load ``spec.file``. Raises :class:`ConfigError` when it is corrupt or not what the configuration says."""
        try:
            self._session = ort.InferenceSession(
                str(spec.file), session_options(spec), providers=execution_providers(spec)
            )
        except Exception as error:  # ONNX Runtime raises classes of its own, with no common base
            raise ConfigError(f"{spec.file} cannot be loaded: {error}") from error
        check_signature(spec, self._session)

    def read(self, tensor: Any) -> Any:
        """A view of the request's memory; BYTES become ``str`` objects."""
        array = tensor.as_numpy()
        return decode_text(tensor.name(), array) if array.dtype == np.object_ else array

    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """Along the batch dimension."""
        return np.concatenate(arrays)

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> list[Any]:
        """One session run, of the named outputs only."""
        return list(self._session.run(outputs, feeds))

    def write(self, name: str, array: Any) -> Any:
        """Copies into the shared memory that the server reads."""
        return pb_utils.Tensor(name, array)


def session_options(spec: ModelSpec) -> ort.SessionOptions:
    """Session options that ``config.pbtxt`` asks for.

    Idle threads sleep instead of spinning, as other models want the same few cores. Raises :class:`ConfigError`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: warnings about a graph would fill the server's log
    options.intra_op_num_threads = spec.integer("intra_op_thread_count", default_intra_op_threads(share=spec.instances))
    options.inter_op_num_threads = spec.integer("inter_op_thread_count", 1)
    mode = spec.integer("execution_mode", 0)
    if mode not in EXECUTION_MODES:
        raise ConfigError(f"parameter execution_mode of model {spec.name!r} is {mode}, not 0 or 1")
    options.execution_mode = EXECUTION_MODES[mode]
    if spec.graph_level not in GRAPH_LEVELS:
        raise ConfigError(f"optimization.graph.level of model {spec.name!r} is {spec.graph_level}, not -1, 1 or 2")
    options.graph_optimization_level = GRAPH_LEVELS[spec.graph_level]
    options.enable_cpu_mem_arena = spec.flag("enable_mem_arena", default=True)
    options.enable_mem_pattern = spec.flag("enable_mem_pattern", default=True)
    spinning = spec.flag("session.intra_op.allow_spinning", default=False)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", str(int(spinning)))
    return options


def execution_providers(spec: ModelSpec) -> list[Any]:
    """CUDA first for a KIND_GPU instance where this ONNX Runtime has it, then the CPU."""
    providers: list[Any] = ["CPUExecutionProvider"]
    if spec.cuda_device is not None and "CUDAExecutionProvider" in ort.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": spec.cuda_device}))
    return providers


def check_signature(spec: ModelSpec, session: ort.InferenceSession) -> None:
    """Names and dtypes of the configuration against the file's. Raises :class:`ConfigError` naming the difference."""
    required = {argument.name for argument in session.get_inputs()}
    initialized = {argument.name: argument for argument in session.get_overridable_initializers()}
    known_inputs = {argument.name: argument for argument in session.get_inputs()} | initialized
    known_outputs = {argument.name: argument for argument in session.get_outputs()}
    _check_tensors("input", spec.inputs, known_inputs, spec)
    _check_tensors("output", spec.outputs, known_outputs, spec)
    missing = sorted(required - {tensor.name for tensor in spec.inputs})
    if missing:
        raise ConfigError(f"inputs {missing} of {spec.file} are missing in the configuration")


def _check_tensors(kind: str, tensors: Sequence[TensorSpec], known: dict[str, Any], spec: ModelSpec) -> None:
    for tensor in tensors:
        if tensor.name not in known:
            raise ConfigError(f"{kind} {tensor.name!r} is not in {spec.file}, which has {sorted(known)}")
        actual = TRITON_TYPES.get(known[tensor.name].type)
        if actual != tensor.data_type:
            raise ConfigError(
                f"{kind} {tensor.name!r} is {tensor.data_type} in the configuration, {actual} in {spec.file}"
            )
