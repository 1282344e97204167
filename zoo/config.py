"""``config.pbtxt``: a recipe in Triton's own words (``triton-inference-server/common``, model_config.proto).

The same file serves in NVIDIA's container and in the embedded server: it names the backend, never how
the backend is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.catalog import Recipe, TensorSpec

BACKENDS = {"onnx": "onnxruntime", "torchscript": "pytorch"}
MODEL_FILES = {"onnx": "model.onnx", "torchscript": "model.pt"}
LABELS_FILE = "labels.txt"


def config_pbtxt(recipe: Recipe) -> str:
    """The text of ``config.pbtxt``."""
    return "\n".join(_lines(recipe)) + "\n"


def _lines(recipe: Recipe) -> Iterator[str]:
    yield f"name: {quote(recipe.name)}"
    yield f'backend: "{BACKENDS[recipe.format]}"'
    yield f'default_model_filename: "{MODEL_FILES[recipe.format]}"'
    yield f"max_batch_size: {recipe.max_batch_size}"
    yield "version_policy { latest { num_versions: 1 } }"
    for spec in recipe.inputs:
        yield from _tensor("input", spec)
    for position, spec in enumerate(recipe.outputs):
        labelled = position == 0 and bool(recipe.labels) and spec.shape == (len(recipe.labels),)
        yield from _tensor("output", spec, LABELS_FILE if labelled else None)
    yield f"instance_group [ {{ count: {recipe.instances.count} kind: {recipe.instances.kind} }} ]"
    if recipe.batching.enabled and recipe.max_batch_size > 1:
        yield from _dynamic_batching(recipe)
    if recipe.response_cache:
        yield "response_cache { enable: true }"
    for key, value in sorted(recipe.parameters.items()):
        yield f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}"


def _tensor(kind: str, spec: TensorSpec, labels_file: str | None = None) -> Iterator[str]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    yield f"{kind} [ {{"
    yield f"  name: {quote(spec.name)}"
    yield f"  data_type: TYPE_{datatype}"
    yield f"  dims: [ {', '.join(map(str, spec.shape))} ]"
    if spec.optional:
        yield "  optional: true"
    if labels_file:
        yield f"  label_filename: {quote(labels_file)}"
    yield "} ]"


def _dynamic_batching(recipe: Recipe) -> Iterator[str]:
    batching = recipe.batching
    yield "dynamic_batching {"
    if batching.preferred_batch_sizes:
        yield f"  preferred_batch_size: [ {', '.join(map(str, batching.preferred_batch_sizes))} ]"
    yield f"  max_queue_delay_microseconds: {batching.max_queue_delay_us}"
    # No queue policy: Triton then fetches the next batch while one runs. With any policy set its batcher
    # waits for an idle instance and can miss the wake-up, half a second at a time (docs/decisions/0002).
    yield "}"


def quote(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    if re.search(r"[\x00-\x1f\x7f]", escaped):
        raise ValueError(f"{text!r} holds a control character")
    return f'"{escaped}"'
