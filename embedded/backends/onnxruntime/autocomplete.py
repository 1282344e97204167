"""Completing ``config.pbtxt`` from an ONNX file, as NVIDIA's ``onnxruntime`` backend does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedded.backends.common.completion import DEFAULT_MAX_BATCH_SIZE, is_complete
from embedded.backends.common.config import ConfigError


def complete(config: Any, version_folder: Path, filename: str) -> Any:
    """Add the inputs, outputs and batching that the configuration leaves out.

    The file is opened only when something is missing. A model whose tensors all begin with a free dimension can be
    batched; then ``max_batch_size`` becomes 4 and the dynamic batcher is used, unless the configuration says
    otherwise. Raises :class:`ConfigError` for a missing or corrupt file, ``ValueError`` where both disagree.
    """
    model = config.as_dict()
    if is_complete(model):
        return config
    path = version_folder / (model.get("default_model_filename") or filename)
    inputs, outputs = _signature(path)
    batched = _can_batch(model, inputs, outputs)
    if batched and model.get("max_batch_size", 0) == 0:
        config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
        config.set_dynamic_batching()
    for argument in inputs:
        config.add_input(_entry(argument, batched=batched))
    for argument in outputs:
        config.add_output(_entry(argument, batched=batched))
    return config


def _signature(path: Path) -> tuple[Sequence[Any], Sequence[Any]]:
    import onnxruntime as ort  # noqa: PLC0415  # only models with an incomplete configuration wait for it

    if not path.exists():
        raise ConfigError(f"model file {path} is missing")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own, with no common base
        raise ConfigError(f"{path} cannot be loaded: {error}") from error
    return session.get_inputs(), session.get_outputs()


def _can_batch(model: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """True when every tensor's first dimension is free, and no configured dims spell that dimension out."""
    if any(not argument.shape or isinstance(argument.shape[0], int) for argument in (*inputs, *outputs)):
        return False
    ranks = {argument.name: len(argument.shape) for argument in (*inputs, *outputs)}
    configured = [*model.get("input", []), *model.get("output", [])]
    return all(not entry.get("dims") or len(entry["dims"]) < ranks.get(entry["name"], 0) for entry in configured)


def _entry(argument: Any, *, batched: bool) -> dict[str, Any]:
    from embedded.backends.onnxruntime.engine import TRITON_TYPES  # noqa: PLC0415

    dims = [size if isinstance(size, int) else -1 for size in argument.shape]
    return {
        "name": argument.name,
        "data_type": f"TYPE_{TRITON_TYPES[argument.type]}",
        "dims": (dims[1:] or [1]) if batched else dims,
    }
