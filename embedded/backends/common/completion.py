"""What both backends say to Triton when it completes a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_MAX_BATCH_SIZE = 4  # as NVIDIA's backends: a model that can batch and does not say how far


def is_complete(config: Mapping[str, Any]) -> bool:
    """True when name, dtype and dims of inputs and outputs are all there, so that the file need not be opened."""
    tensors = [*config.get("input", []), *config.get("output", [])]
    return bool(config.get("input") and config.get("output")) and all(
        tensor.get("data_type", "TYPE_INVALID") != "TYPE_INVALID" and tensor.get("dims") for tensor in tensors
    )
