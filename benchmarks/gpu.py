"""ONNX Runtime and TorchScript on a CUDA GPU through the embedded backends; one clear line where there is none."""

from __future__ import annotations

from pathlib import Path

from benchmarks.configs import copy, read_config, rewrite
from benchmarks.environment import gpus


class NoGpuError(Exception):
    """There is no CUDA GPU here, or no library that can use it."""


def require() -> list[str]:
    """The GPUs of this machine. Raises :class:`NoGpuError`."""
    found = gpus()
    if not found:
        raise NoGpuError("no CUDA GPU here: nvidia-smi shows none")
    return found


def repository(source: Path, models: list[str], target: Path) -> Path:
    """A copy of the models that asks Triton for ``KIND_GPU`` instances."""
    for model in models:
        copy(source / model, target / model)
        rewrite(target / model, on_gpu(target / model / "config.pbtxt"))
    return target


def on_gpu(path: Path) -> str:
    """The configuration at ``path`` with its instances on the GPU."""
    config = read_config(path)
    if not config.instance_group:
        config.instance_group.add().count = 1
    for group in config.instance_group:
        group.kind = group.KIND_GPU
    return str(config)
