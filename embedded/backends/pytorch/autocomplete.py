"""Completing ``config.pbtxt`` for a TorchScript file: it knows how many tensors there are, not their shapes."""

from __future__ import annotations

from typing import Any

from embedded.backends.common.completion import is_complete
from embedded.backends.common.config import ConfigError


def complete(config: Any, filename: str) -> Any:
    """Leave a complete configuration as it is; raise :class:`ConfigError` for one that cannot be completed.

    TorchScript keeps no dtypes and shapes of its inputs and outputs (NVIDIA's libtorch backend asks for them too).
    """
    model = config.as_dict()
    if not is_complete(model):
        raise ConfigError(
            f"config.pbtxt of {model['name']!r} must give name, data_type and dims of every input and output: "
            f"{model.get('default_model_filename') or filename} does not record them"
        )
    return config
