"""Runs a built model file in this process, with the libraries that Triton's backends are made of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from gateway.catalog import ModelCard, Recipe
from gateway.settings import Settings
from gateway.tasks import create_task
from gateway.tasks.base import Shared, Task
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceRequest, InferenceResult

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class Runner(Protocol):
    """A loaded model file."""

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name; inputs and outputs carry the batch dimension."""
        ...


class OnnxRunner:
    """ONNX Runtime on the CPU. ``model`` is a path or the file's bytes."""

    def __init__(self, model: Path | bytes, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a build shares its processors
        self._session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))


class ModuleRunner:
    """A source model itself, in PyTorch, with the recipe's names."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        self._module = module
        self._recipe = recipe

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name."""
        arguments = [torch.from_numpy(np.array(inputs[spec.name])) for spec in self._recipe.inputs]
        with torch.inference_mode():
            found = self._module(*arguments)
        tensors = found if isinstance(found, tuple | list) else (found,)
        return {spec.name: tensor.numpy() for spec, tensor in zip(self._recipe.outputs, tensors, strict=True)}


class TorchRunner(ModuleRunner):
    """TorchScript on the CPU; inputs and outputs go by position, as in Triton's ``name__<position>``."""

    def __init__(self, model: Path, recipe: Recipe) -> None:
        load: Any = torch.jit.load
        with warnings.catch_warnings():  # its successor is not what Triton's libtorch backend reads
            warnings.simplefilter("ignore", DeprecationWarning)
            module = load(str(model), map_location="cpu")
        super().__init__(module.eval(), recipe)

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name. Unoptimised: every new shape would be optimised for, which takes longer than it runs."""
        jit: Any = torch.jit
        with jit.optimized_execution(False):
            return super().run(inputs)


def load_runner(model: Path, recipe: Recipe) -> Runner:
    """The runner of a built file, by the recipe's format."""
    return OnnxRunner(model) if recipe.format == "onnx" else TorchRunner(model, recipe)


class TaskRunner:
    """Task calls on a model file, through the code that the gateway answers with.

    ``card`` may be of a build in progress; its folder must hold the tokenizer. Raises ``ValueError`` for
    a recipe that the task cannot work with.
    """

    def __init__(self, card: ModelCard, runner: Runner, settings: Settings) -> None:
        self._card = card
        self._runner = runner
        self._settings = settings
        self._shared = Shared()
        self._tasks: dict[str, Task] = {}

    def call(self, task: str, inputs: Any, options: Mapping[str, Any] | None = None) -> Any:
        """The answer (see :mod:`gateway.tasks.answers`). Raises ``GatewayError``."""
        if task not in self._tasks:
            self._tasks[task] = create_task(self._card, task, self._settings, self._shared)
        plan = self._tasks[task].plan(inputs, options or {})
        return plan.finish([infer(self._runner, request) for request in plan.requests])


def infer(runner: Runner, request: InferenceRequest) -> InferenceResult:
    """What Triton would answer to ``request``, computed here."""
    outputs = runner.run({tensor.name: to_numpy(tensor) for tensor in request.inputs})
    wanted = request.outputs or tuple(outputs)
    return InferenceResult(request.model, "", tuple(from_numpy(name, outputs[name]) for name in wanted), request.id)
