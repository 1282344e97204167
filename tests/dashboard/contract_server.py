"""A server that speaks the gateway's public HTTP surface with recorded answers: bodies, headers and
error bodies as clients see them. It answers what the tests of the pages need and counts what it was asked.
"""

from __future__ import annotations

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

KEY = "tg_live_ab12cd34_c2VjcmV0c2VjcmV0c2VjcmV0_1a2b3c"
INFER_ONLY = "tg_live_ef56ab78_b3RoZXJzZWNyZXRvdGhlcg_4d5e6f"
TIMING = (
    "auth;dur=0.05, admit;dur=0.11, preprocess;dur=1.40, infer;dur=11.70, postprocess;dur=0.20, record;dur=0.30, "
    "total;dur=13.90"
)


@dataclass
class Recorded:
    """One request as the server got it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ContractGateway:
    """The state of the server: what it was asked, and whether it is to refuse."""

    requests: list[Recorded] = field(default_factory=list)
    refuse: tuple[int, str, dict[str, str]] | None = None
    """Status, message and headers that every authenticated call is answered with."""
    without_statistics: bool = False
    """Whether answers come without an estimate, as a model's first ones do."""
    url: str = ""

    def asked(self, path: str) -> list[Recorded]:
        return [request for request in self.requests if request.path == path]


def card(name: str, task: str | None, **changes: Any) -> dict[str, Any]:
    """A model card as ``GET /v1/models`` shows it."""
    return {
        "name": name, "version": 1, "task": task, "title": name.capitalize(), "description": f"What {name} does.",
        "architecture": "MiniLM", "source": {"kind": "trained", "name": name, "revision": None, "trunk": "minilm"},
        "format": "onnx", "quantisation": "none",
        "inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [-1], "optional": False}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2], "optional": False}],
        "labels": ["negative", "positive"], "languages": ["en"], "preprocessing": {"kind": "text", "max_length": 256},
        "max_batch_size": 32, "licence": "Apache-2.0", "notes": "",
        "evaluations": [{"metric": "accuracy", "value": 0.881, "floor": 0.875, "dataset": "SST-2", "split": "dev",
                         "samples": 872, "sha256": "ab" * 32, "date": "2026-11-23"}],
        "evidence": {"built_at": "2026-11-23T20:00:00Z", "build_seconds": 12.5, "model_file": "1/model.onnx",
                     "model_bytes": 91_000_000, "model_sha256": "cd" * 32, "recipe_sha256": "ef" * 32,
                     "parity_max_abs_error": 1.2e-6, "parity_cases": 9, "golden_passed": 3, "versions": {}},
        "ready": True, "tasks": [task] if task else [], **changes,
    }  # fmt: skip


IMAGE = {"kind": "image", "mode": "RGB", "crop": [224, 224]}
MODELS = [
    card("digits", "image-classification", format="torchscript", preprocessing=IMAGE | {"mode": "L", "crop": [28, 28]}),
    card("imagenet", "image-classification", preprocessing=IMAGE, labels=[f"class {n}" for n in range(1000)]),
    card("sentiment", "text-classification"),
    card("topics-zh", "text-classification", languages=["zh"], format="torchscript"),
    card("entities", "token-classification"),
    card("qa", "question-answering"),
    card("translate-zh-en", "translation", languages=["zh", "en"], ready=False),
    card("translate-en-fr", "translation", languages=["en", "fr"]),
    card("embeddings", "feature-extraction",
         tasks=["feature-extraction", "sentence-similarity", "zero-shot-classification"]),
    card("identity", None, preprocessing=None, evaluations=[], evidence=None, labels=[]),
]  # fmt: skip


def answer(model: str, task: str, request: Recorded) -> Any:
    """What a model answers; the shapes of the Hugging Face task API."""
    if task == "image-classification":
        labels = ["tabby", "tiger cat", "Egyptian cat", "lynx", "carton"] if model == "imagenet" else list("35826")
        return [
            {"label": label, "score": score}
            for label, score in zip(labels, (0.71, 0.16, 0.08, 0.02, 0.01), strict=False)
        ]
    body = request.json()
    inputs = body["inputs"]
    if task == "text-classification":
        labels = ["positive", "negative"] if model == "sentiment" else ["书籍", "酒店", "水果"]
        return [[{"label": label, "score": score} for label, score in zip(labels, (0.93, 0.05, 0.02), strict=False)]]
    if task == "token-classification":
        names = [("PER", "Marie Curie"), ("LOC", "Warsaw"), ("LOC", "Paris"), ("ORG", "Sorbonne")]
        return [
            {"entity_group": group, "word": word, "score": 0.98, "start": at, "end": at + len(word)}
            for group, word in names
            if (at := inputs.find(word)) >= 0
        ]
    if task == "question-answering":
        start = inputs["context"].find("May")
        spans = [{"answer": inputs["context"][start : start + 12], "score": 0.81, "start": start, "end": start + 12}]
        return spans * body["parameters"]["top_k"] if body["parameters"].get("top_k", 1) > 1 else spans[0]
    if task == "translation":
        return [{"translation_text": f"<{inputs}> in the other language"}]
    if task == "zero-shot-classification":
        labels = body["parameters"]["candidate_labels"]
        return [{"label": label, "score": round(0.9 / (index + 1), 3)} for index, label in enumerate(labels)]
    texts = inputs if isinstance(inputs, list) else [inputs]
    vectors = np.random.default_rng(7).normal(size=(len(texts), 384))
    rows = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).round(6).tolist()
    return rows if isinstance(inputs, list) else rows[0]


class Surface:
    """The routes."""

    def __init__(self, state: ContractGateway) -> None:
        self.state = state

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/healthz/ready", self.ready),
                Route("/v1/models", self.guarded(self.models)),
                Route("/hf/models/{model}", self.guarded(self.task), methods=["POST"]),
                Route("/hf/models/{model}/pipeline/{task}", self.guarded(self.task), methods=["POST"]),
                Route("/admin/usage", self.guarded(self.usage)),
                Route("/admin/usage/records", self.guarded(self.records)),
            ]
        )

    async def ready(self, request: Request) -> Response:
        return PlainTextResponse("ready")

    def guarded(self, handler: Callable[[Request, Recorded], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            recorded = Recorded(
                request.method,
                request.url.path,
                dict(request.query_params),
                dict(request.headers),
                await request.body(),
            )
            self.state.requests.append(recorded)
            if request.headers.get("authorization") not in {f"Bearer {KEY}", f"Bearer {INFER_ONLY}"}:
                return error(401, "A valid API key is required.")
            if self.state.refuse:
                return error(*self.state.refuse)
            return handler(request, recorded)

        return endpoint

    def models(self, request: Request, recorded: Recorded) -> Response:
        data = [
            {"id": item["name"], "object": "model", "created": 1_790_000_000, "owned_by": "tidegate", "tidegate": item}
            for item in MODELS
        ]
        return JSONResponse({"object": "list", "data": data})

    def task(self, request: Request, recorded: Recorded) -> Response:
        found = next((item for item in MODELS if item["name"] == request.path_params["model"]), None)
        if found is None:
            return error(404, "No such model.")
        task = request.path_params.get("task") or found["task"]
        headers = {"Server-Timing": TIMING, "X-Tidegate-Compute-Ms": "9.4", "X-Tidegate-Cost-USD": "0.0000012345",
                   "X-Tidegate-Usage-Id": "0199-usage", "X-Request-Id": "request-1"}  # fmt: skip
        if self.state.without_statistics:
            headers |= {"X-Tidegate-Compute-Ms": "0.0", "X-Tidegate-Cost-USD": "0.000000000000"}
        units = {"X-Tidegate-Pixels": "135300"} if task == "image-classification" else {"X-Tidegate-Tokens": "17"}
        return JSONResponse(answer(found["name"], task, recorded), headers=headers | units)

    def usage(self, request: Request, recorded: Recorded) -> Response:
        if INFER_ONLY in request.headers["authorization"]:
            return JSONResponse({"title": "Forbidden", "status": 403, "detail": "Needs the scope usage:read."}, 403)
        today = dt.datetime.now(tz=dt.timezone.utc).date()
        groups = (
            ["sentiment", "imagenet"]
            if request.query_params["group_by"] == "model"
            else [(today - dt.timedelta(days=n)).isoformat() for n in (1, 0)]
        )
        name = request.query_params["group_by"]
        rows = [
            {
                name: group, "requests": 12 + n, "completed": 12 + n, "failed": 0, "client_closed": 0, "unknown": 0,
                "tokens": 340, "pixels": 0, "rows": 12, "bytes_in": 2048, "bytes_out": 4096, "cache_hits": 0,
                "total_ms": 210.5, "queue_ms": 0.4, "compute_ms": 45.6,
                "cost_usd": 0.0001 * (n + 1), "billed_usd": 0.0001 * (n + 1),
            }
            for n, group in enumerate(groups)
        ]  # fmt: skip
        return JSONResponse({"usage": rows})

    def records(self, request: Request, recorded: Recorded) -> Response:
        if INFER_ONLY in request.headers["authorization"]:
            return JSONResponse({"title": "Forbidden", "status": 403, "detail": "Needs the scope usage:read."}, 403)
        record = {
            "received_at": "2026-11-23T20:00:00.000001+00:00", "key": "ab12cd34", "usage_id": "0199-usage",
            "state": "completed", "organisation": "acme", "project": "demo", "test": False, "dialect": "huggingface",
            "operation": "text-classification", "model": "sentiment", "request_id": "request-1", "status": 200,
            "error": None, "tokens": 17, "pixels": 0, "rows": 1, "compute_ms": 9.4, "total_ms": 13.9,
            "cost_usd": 0.0000012, "billed_usd": 0.0000012, "gateway": "g-1",
        }  # fmt: skip
        return JSONResponse({"usage": [record]})


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers={"X-Request-Id": "request-1"} | (headers or {}))


class ServerThread:
    """A real server on a free loopback port, in a thread."""

    def __init__(self) -> None:
        self.state = ContractGateway()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))
        self.state.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(Surface(self.state).app(), log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> ContractGateway:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            if time.monotonic() > deadline:
                raise TimeoutError("the contract server did not start")
            time.sleep(0.01)
        return self.state

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
