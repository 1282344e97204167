"""Triton's entry to the ``onnxruntime`` backend: copied into the backend directory, loaded by the Python stub.

The engine is imported when an instance is made: Triton starts one more stub only to complete the configuration,
which must not wait for a library that it seldom needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedded.backends.common.config import ModelSpec
    from embedded.backends.common.execution import BatchExecutor, Engine

FILENAME = "model.onnx"


class TritonPythonModel:
    """One instance of an ONNX model."""

    _executor: BatchExecutor

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill in what ``config.pbtxt`` leaves out from the ONNX file."""
        import triton_python_backend_utils as pb_utils  # noqa: PLC0415

        from embedded.backends.onnxruntime.autocomplete import complete  # noqa: PLC0415

        return complete(auto_complete_model_config, Path(pb_utils.get_model_dir()), FILENAME)

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model file."""
        from embedded.backends.common.config import ModelSpec  # noqa: PLC0415
        from embedded.backends.common.execution import BatchExecutor  # noqa: PLC0415

        spec = ModelSpec.read(args, FILENAME)
        self._executor = BatchExecutor(spec, _load(spec))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one batch."""
        return self._executor.execute(requests)


def _load(spec: ModelSpec) -> Engine:
    if any(tensor.data_type == "BF16" for tensor in (*spec.inputs, *spec.outputs)):
        from embedded.backends.onnxruntime.bfloat16 import Bfloat16Engine  # noqa: PLC0415  # brings torch

        return Bfloat16Engine(spec)
    from embedded.backends.onnxruntime.engine import OnnxEngine  # noqa: PLC0415

    return OnnxEngine(spec)
