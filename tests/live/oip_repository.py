"""A model repository of small models, one for each thing that the Open Inference Protocol has."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import torch
import yaml
from onnx import helper

from tests.embedded.repository import ALL_ONNX, Repository

LABELS = ("apple", "pear", "plum", "quince")
MODELS = ("add_sub", "bf16", "chat", "negate", "types", "words")

CHAT = '''
import json
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Answers in capitals, and with the request's parameters."""

    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0].decode()
            if text == "fail":
                responses.append(pb.InferenceResponse([], pb.TritonError("/opt/secret/path: failed as asked")))
                continue
            count = pb.get_input_tensor_by_name(request, "count")
            times = int(count.as_numpy().reshape(-1)[0]) if count is not None else 1
            parameters = json.dumps(json.loads(request.parameters()), sort_keys=True)
            responses.append(
                pb.InferenceResponse(
                    [
                        pb.Tensor("text_output", np.array([" ".join([text.upper()] * times).encode()], dtype=object)),
                        pb.Tensor("parameters", np.array([parameters.encode()], dtype=object)),
                    ]
                )
            )
        return responses
'''

WORDS = '''
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Answers word by word; breaks off at the word "fail"."""

    def execute(self, requests):
        for request in requests:
            text = pb.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0].decode()
            sender = request.get_response_sender()
            for place, word in enumerate(text.split()):
                if word == "fail":
                    error = pb.TritonError("/opt/secret/path: failed as asked")
                    sender.send(pb.InferenceResponse([], error))
                    break
                sender.send(
                    pb.InferenceResponse(
                        [
                            pb.Tensor("text_output", np.array([word.encode()], dtype=object)),
                            pb.Tensor("place", np.array([place], dtype=np.int32)),
                        ]
                    )
                )
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''


class Same(torch.nn.Module):
    """ONNX Runtime's identity does not take BF16; libtorch's does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def build(folder: Path) -> Path:
    """Write every model below ``folder``."""
    repository = Repository(folder)
    _add_sub(repository)
    repository.onnx(
        "types",
        [helper.make_node("Identity", [f"IN_{dtype}"], [f"OUT_{dtype}"]) for dtype in ALL_ONNX],
        [(f"IN_{dtype}", dtype, [3]) for dtype in ALL_ONNX],
        [(f"OUT_{dtype}", dtype, [3]) for dtype in ALL_ONNX],
        extra="dynamic_batching { }",
    )
    repository.torchscript("bf16", Same(), [("IN__0", "BF16", [3])], [("OUT__0", "BF16", [3])])
    _negate(repository)
    _python(repository, "chat", CHAT, ("text_input", "count"), ("text_output", "parameters"))
    _python(repository, "words", WORDS, ("text_input",), ("text_output", "place"))
    return folder


def _add_sub(repository: Repository) -> None:
    """Two inputs, two outputs, each output with labels; the recipe has them for the gateway."""
    name = repository.onnx(
        "add_sub",
        [helper.make_node("Add", ["A", "B"], ["SUM"]), helper.make_node("Sub", ["A", "B"], ["DIFFERENCE"])],
        [("A", "FP32", [4]), ("B", "FP32", [4])],
        [("SUM", "FP32", [4]), ("DIFFERENCE", "FP32", [4])],
        extra="dynamic_batching { }",
    )
    folder = repository.folder / name
    config = folder / "config.pbtxt"
    text = config.read_text()
    for output in ("SUM", "DIFFERENCE"):
        text = text.replace(f'output {{ name: "{output}"', f'output {{ name: "{output}" label_filename: "labels.txt"')
    config.write_text(text)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    tensors = {
        kind: [{"name": tensor, "datatype": "FP32", "shape": [4]} for tensor in names]
        for kind, names in (("inputs", ("A", "B")), ("outputs", ("SUM", "DIFFERENCE")))
    }
    recipe = {
        "name": name, "title": "Sum and difference", "description": "Of two vectors.", "architecture": "addition",
        "source": {"kind": "builtin", "name": name}, "format": "onnx", "labels": list(LABELS), "licence": "Apache-2.0",
        "max_batch_size": 8, **tensors,
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(recipe))


def _negate(repository: Repository) -> None:
    """Two versions without a batch dimension: 1 negates, 2 leaves as it is."""
    vectors = ([("X", "FP32", [2, -1])], [("Y", "FP32", [2, -1])])
    extra = "version_policy { all { } }"
    folder = repository.folder / "negate"
    repository.onnx("negate", [helper.make_node("Identity", ["X"], ["Y"])], *vectors, max_batch_size=0, extra=extra)
    shutil.move(folder / "1", folder / "2")
    repository.onnx("negate", [helper.make_node("Neg", ["X"], ["Y"])], *vectors, max_batch_size=0, extra=extra)
    for version in ("1", "2"):
        onnx.checker.check_model(str(folder / version / "model.onnx"))


def _python(repository: Repository, name: str, source: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """A Python model of single texts and numbers."""
    types = {"count": "INT32", "place": "INT32"}
    lines = ['backend: "python"', "max_batch_size: 0", "instance_group { count: 1 kind: KIND_CPU }"]
    for tensor in inputs:
        optional = " optional: true" if tensor == "count" else ""
        lines.append(f'input {{ name: "{tensor}" data_type: TYPE_{types.get(tensor, "STRING")} dims: [1]{optional} }}')
    lines += [
        f'output {{ name: "{tensor}" data_type: TYPE_{types.get(tensor, "STRING")} dims: [1] }}' for tensor in outputs
    ]
    if "flags=" in source:
        lines.append("model_transaction_policy { decoupled: true }")
    repository.write_config(name, "\n".join(lines) + "\n")
    (repository.folder / name / "1" / "model.py").write_text(source)
