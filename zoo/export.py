"""From a source model to the one file that Triton runs: ONNX or TorchScript.

Of one source model ONNX is the same bytes every time; TorchScript may number its classes differently.
"""

from __future__ import annotations

import io
import itertools
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from gateway.catalog import Recipe
from zoo.errors import ExportError

OPSET = 18
"""Runs in every ONNX Runtime since 1.14 and so in every Triton container of the last years."""

ONNX_LIMIT = 2 * 2**30
"""Bytes of one protobuf message; a larger model would need files beside it."""


def export(module: nn.Module, recipe: Recipe, samples: Mapping[str, Tensor], *, scripted: bool = False) -> bytes:
    """The model file's content.

    ``module`` takes the recipe's inputs in their order and returns its outputs in theirs; ``samples``
    is one batch of them by name, of at least two rows. ``scripted``: TorchScript keeps the module's own
    control flow (a decoding loop) instead of tracing it. Raises :class:`ExportError`.
    """
    try:
        with torch.inference_mode(recipe.format == "torchscript"), _quiet():
            if recipe.format == "torchscript":
                return to_torchscript(module, samples, scripted=scripted)
            return to_onnx(module, recipe, samples)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{recipe.name}: the export to {recipe.format} failed: {first_line(error)}") from error


def to_torchscript(module: nn.Module, samples: Mapping[str, Tensor], *, scripted: bool) -> bytes:
    """TorchScript of ``module``, scripted or traced."""
    make: Any = torch.jit.script if scripted else torch.jit.trace
    graph = make(module) if scripted else make(module, tuple(samples.values()))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(graph.eval()), buffer)
    return buffer.getvalue()


def to_onnx(module: nn.Module, recipe: Recipe, samples: Mapping[str, Tensor]) -> bytes:
    """ONNX of ``module``; the batch and every ``-1`` of the recipe's shapes are dynamic."""
    size = sum(value.numel() * value.element_size() for value in itertools.chain(module.parameters(), module.buffers()))
    if size >= ONNX_LIMIT:
        raise ExportError(f"{recipe.name}: its weights take {size / 2**30:.1f} GiB; one ONNX file holds less than 2")
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(samples.values()),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=[spec.name for spec in recipe.inputs],
            output_names=[spec.name for spec in recipe.outputs],
            dynamic_shapes=_dynamic_shapes(recipe),
        )
    if program is None:
        raise ExportError(f"{recipe.name}: the export to onnx gave nothing")
    model = program.model_proto
    if recipe.quantisation == "dynamic-int8":
        model = quantise(model)
    return serialise(model)


def serialise(model: onnx.ModelProto) -> bytes:
    """Bytes of ``model`` without what the exporter noted about the machine and its sources."""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        del graph.metadata_props[:]
        for item in itertools.chain(graph.node, graph.value_info):
            del item.metadata_props[:]
            item.doc_string = ""
    model.doc_string = ""
    for value in itertools.chain(model.graph.input, model.graph.output, model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def quantise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as int8 with a scale a column, activations quantised at run time.

    ``reduce_range`` keeps a bit free: processors without VNNI add products in 16 bits.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        return onnx.load(path)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, for a message of one line."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]


def _dynamic_shapes(recipe: Recipe) -> tuple[dict[int, Any], ...]:
    batch = {0: torch.export.Dim("batch")} if recipe.max_batch_size else {}
    first = len(batch)
    length = torch.export.Dim("length")
    return tuple(
        {**batch, **{first + axis: length for axis, size in enumerate(spec.shape) if size == -1}}
        for spec in recipe.inputs
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' notes on their own deprecations and on optional packages help nobody here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
