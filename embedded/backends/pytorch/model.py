"""Triton's entry to the ``pytorch`` backend: copied into the backend directory, loaded by the Python stub.

The engine is imported when an instance is made: Triton starts one more stub only to complete the configuration,
which must not wait for a library that it seldom needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedded.backends.common.execution import BatchExecutor

FILENAME = "model.pt"


class TritonPythonModel:
    """One instance of a TorchScript model."""

    _executor: BatchExecutor

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Refuse a ``config.pbtxt`` that leaves out what a TorchScript file cannot tell."""
        from embedded.backends.pytorch.autocomplete import complete  # noqa: PLC0415

        return complete(auto_complete_model_config, FILENAME)

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model file."""
        from embedded.backends.common.config import ModelSpec  # noqa: PLC0415
        from embedded.backends.common.execution import BatchExecutor  # noqa: PLC0415
        from embedded.backends.pytorch.engine import TorchEngine  # noqa: PLC0415

        spec = ModelSpec.read(args, FILENAME)
        self._executor = BatchExecutor(spec, TorchEngine(spec))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of one batch."""
        return self._executor.execute(requests)
