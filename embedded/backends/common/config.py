"""What a Python-based backend reads from Triton: the model's configuration, its file, its device, its parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """``config.pbtxt`` or the model file asks for something that cannot be; the message names it."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output as configured; ``dims`` are without the batch dimension, -1 is any size."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """The configuration of one instance of one version of a model."""

    name: str
    version: str
    file: Path
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, str]
    graph_level: int
    cuda_device: int | None
    """Index of the GPU of this instance; ``None``: CPU."""
    instances: int = 1
    """Of this version of the model on the CPUs, together: they share them. Those on a GPU compute there."""

    @property
    def batched(self) -> bool:
        """True when every tensor has a batch dimension in front."""
        return self.max_batch_size > 0

    @classmethod
    def read(cls, arguments: Mapping[str, str], default_filename: str) -> ModelSpec:
        """From what Triton passes to ``initialize``. Raises :class:`ConfigError` when the model file is missing."""
        config = json.loads(arguments["model_config"])
        file = model_file(config, arguments["model_repository"], arguments["model_version"], default_filename)
        on_gpu = arguments["model_instance_kind"] == "GPU"
        return cls(
            name=config["name"],
            version=arguments["model_version"],
            file=file,
            max_batch_size=int(config.get("max_batch_size", 0)),
            inputs=_tensors(config["input"]),
            outputs=_tensors(config["output"]),
            parameters={key: value["string_value"] for key, value in config.get("parameters", {}).items()},
            graph_level=int(config.get("optimization", {}).get("graph", {}).get("level", 0)),
            cuda_device=int(arguments["model_instance_device_id"]) if on_gpu else None,
            instances=_cpu_instances(config),
        )

    def integer(self, key: str, default: int) -> int:
        """Parameter ``key`` as a number that is not negative; absent or 0: ``default``, as in NVIDIA's backends."""
        text = self.parameters.get(key, "0")
        try:
            value = int(text)
        except ValueError:
            value = -1
        if value < 0:
            raise ConfigError(f"parameter {key} of model {self.name!r} is {text!r}, not a number of 0 or more")
        return value or default

    def flag(self, key: str, *, default: bool) -> bool:
        """Parameter ``key`` as a boolean: true, false, 1 or 0 in any case."""
        text = self.parameters.get(key)
        if text is None:
            return default
        known = {"true": True, "1": True, "false": False, "0": False}
        if text.strip().lower() not in known:
            raise ConfigError(f"parameter {key} of model {self.name!r} is {text!r}, not true or false")
        return known[text.strip().lower()]


def model_file(config: Mapping[str, Any], repository: str, version: str, default_filename: str) -> Path:
    """The version's model file. Raises :class:`ConfigError` when it is missing."""
    path = Path(repository) / version / (config.get("default_model_filename") or default_filename)
    if not path.exists():
        raise ConfigError(f"model file {path} is missing")
    return path


def default_intra_op_threads(*, share: int = 1, cpus: int | None = None) -> int:
    """Threads of one operator when the configuration names none: CPUs divided by ``share``, or ``OMP_NUM_THREADS``.

    ``cpus``: how many there are; ``None``: those that this process may run on.

    ONNX Runtime's threads do not spin here: one for each CPU costs a model that waits nothing. OpenMP's, which
    libtorch uses, do, and a small operator is over before they have begun: it gets half (docs/decisions/0002).
    Instances of one model share the CPUs: ``share`` grows with their number.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return max(1, (cpus or len(os.sched_getaffinity(0))) // share)


def _cpu_instances(config: Mapping[str, Any]) -> int:
    groups = config.get("instance_group", [])
    return sum(int(group.get("count", 1)) for group in groups if group.get("kind") != "KIND_GPU") or 1


def _tensors(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=entry["name"],
            data_type=entry["data_type"].removeprefix("TYPE_"),
            dims=tuple(int(size) for size in entry["dims"]),
            optional=bool(entry.get("optional", False)),
        )
        for entry in entries
    )
