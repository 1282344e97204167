"""text-embeddings-inference's API under ``/tei/{model}``: what TEI's clients speak, for the models that can.

``/rerank`` on an embedding model is a bi-encoder: the cosine of query and text, as it is with
``raw_scores``, else moved from [-1, 1] to [0, 1]. On a classifier of one class it is a cross-encoder.
Errors are ``{"error", "error_type"}``; they keep the gateway's status where TEI's would say less.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from gateway.catalog import ModelCard, TextPreprocessing
from gateway.dialects import tei_codec as codec
from gateway.dialects import tei_schemas as schemas
from gateway.dialects.body import LONG_BODY
from gateway.dialects.http import Request, Response, Route
from gateway.dialects.json import encode
from gateway.dialects.openai import EMBEDDINGS_ANSWER, decode_embeddings, encode_embeddings, run_embeddings
from gateway.errors import GatewayError, NotFound, Unavailable
from gateway.pipeline import Pipeline
from gateway.tasks import task_names
from gateway.tasks.answers import Embeddings, Labels, Similarities, TokenEmbeddings
from gateway.tasks.inputs import EmptyInput
from gateway.tasks.text import TextEncoder
from gateway.tasks.text_task import TextTask, characters
from gateway.types import Call

EMBEDDING_TASK = "feature-extraction"
CLASSIFICATION_TASK = "text-classification"
OPENAI_OPERATION = "embeddings"

Answer = Callable[[ModelCard, Request, Call], Awaitable[tuple[bytes, int]]]
"""Body of the answer and characters of the request."""


class Tei:
    """The dialect. ``version`` is the gateway's, for ``/info``."""

    name = "tei"
    error_schema = schemas.ERROR

    def __init__(self, pipeline: Pipeline, version: str) -> None:
        self._pipeline = pipeline
        self._version = version

    @property
    def routes(self) -> list[Route]:
        """Every operation under ``/tei``."""
        tags = ("text-embeddings-inference",)

        def post(path: str, answer: Answer, summary: str, request: Any, response: Any, operation: str = "") -> Route:
            return Route(
                "POST", f"/tei/{{model}}{path}", operation or path.strip("/") or "task", partial(self._serve, answer),
                summary=summary, tags=tags, request_schema=request, response_schema=response, failures={401: None},
                inference=path not in {"/tokenize", "/decode"},
                path_example={"model": schemas.EXAMPLE_MODELS.get(path, "embeddings")},
                example=schemas.EXAMPLES.get(path),
            )  # fmt: skip

        routes = [
            post("", self._own, "The model's own task", schemas.OWN, schemas.OWN_ANSWER),
            post("/", self._own, "The model's own task", schemas.OWN, schemas.OWN_ANSWER),
            post("/invocations", self._own, "The model's own task", schemas.OWN, schemas.OWN_ANSWER),
            post("/embed", self._embed, "Sentence embeddings", schemas.EMBED, schemas.VECTORS),
            post("/embed_all", self._embed_all, "Token embeddings", schemas.EMBED_ALL, schemas.MATRICES),
            post("/embed_sparse", self._embed_sparse, "Sparse embeddings (none here)", schemas.EMBED_ALL, {}),
            post("/predict", self._predict, "Classes of texts and pairs", schemas.PREDICT, schemas.LABELS),
            post("/rerank", self._rerank, "Order texts by a query", schemas.RERANK, schemas.RANKS),
            post("/similarity", self._similarity, "Cosines of sentences", schemas.SIMILARITY, schemas.SCORES),
            post("/tokenize", self._tokenize, "Tokens of texts", schemas.TOKENIZE, schemas.TOKENS),
            post("/decode", self._decode, "Texts of token ids", schemas.DECODE, schemas.TEXTS),
        ]
        routes += [
            post(path, self._openai, "OpenAI's embeddings", schemas.OPENAI, EMBEDDINGS_ANSWER, OPENAI_OPERATION)
            for path in ("/embeddings", "/v1/embeddings")
        ]
        routes += [
            Route(
                "GET", f"/tei/{{model}}{path}", path[1:], handler, summary=summary, tags=tags, response_schema=answer,
                response_media_types=("application/json",) if answer else (), failures={401: None},
                path_example={"model": "embeddings"},
            )
            for path, handler, summary, answer in (
                ("/info", self.info, "The model and its limits", schemas.INFO),
                ("/health", self.health, "Whether the model can be inferred", None),
            )
        ]  # fmt: skip
        return routes

    def encode_error(self, error: GatewayError, call: Call) -> Response:
        """TEI's flat errors; 401 has no body, OpenAI's route has a flat form of its own."""
        if error.status == 401:
            return Response(401, b"", media_type=None)
        status = 400 if isinstance(error, EmptyInput) else error.status
        kind = codec.error_type(error)
        if call.operation == OPENAI_OPERATION:
            return Response(status, encode({"message": error.message, "code": status, "type": kind}))
        return Response(status, encode({"error": error.message, "error_type": kind}))

    async def info(self, request: Request, call: Call) -> Response:
        """``GET /tei/{model}/info``."""
        card = self._pipeline.card(call, request.params["model"])
        return Response(200, encode(describe(card, self._pipeline, self._version)))

    async def health(self, request: Request, call: Call) -> Response:
        """``GET /tei/{model}/health``: 200 with no body. Raises ``Unavailable``."""
        card = self._pipeline.card(call, request.params["model"])
        if not self._pipeline.is_ready(card.name):
            raise Unavailable("the model is not ready", retry_after_s=1.0)
        return Response(200, b"", media_type=None)

    # --- the way of every POST

    async def _serve(self, answer: Answer, request: Request, call: Call) -> Response:
        begin = time.monotonic_ns()
        card = self._pipeline.card(call, request.params["model"])
        body, size = await answer(card, request, call)
        total = time.monotonic_ns() - begin
        return Response(200, body, codec.compute_headers(call, size, total))

    async def _run(self, card: ModelCard, task: str, inputs: Any, options: Mapping[str, Any], call: Call) -> Any:
        if task not in task_names(card):
            raise NotFound(f"the model does not serve the task {task}", param="model")
        return await self._pipeline.run_task(call, card.name, task, inputs, options)

    async def _read(self, call: Call, request: Request, kind: type[codec.BodyType]) -> codec.BodyType:
        return await self._pipeline.prepared(
            call, lambda: codec.decode_body(request, kind), long=len(request.body) > LONG_BODY
        )

    async def _own(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        own = {EMBEDDING_TASK: self._embed, CLASSIFICATION_TASK: self._predict}.get(card.recipe.task or "")
        if own is None:
            raise NotFound("the model has no task that this API knows", param="model")
        return await own(card, request, call)

    async def _embed(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.EmbedBody)
        answer: Embeddings = await self._run(card, EMBEDDING_TASK, asked.inputs, asked.options(), call)
        return encode(answer.vectors.tolist()), characters(asked.inputs)

    async def _embed_all(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.EmbedAllBody)
        answer: TokenEmbeddings = await self._run(card, EMBEDDING_TASK, asked.inputs, asked.options(), call)
        return encode([matrix.tolist() for matrix in answer.items]), characters(asked.inputs)

    async def _embed_sparse(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:  # noqa: ARG002
        raise NotFound("the model makes no sparse embeddings", param="model")

    async def _predict(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.PredictBody)
        inputs, single = codec.predict_inputs(asked.inputs)
        answer: Labels = await self._run(card, CLASSIFICATION_TASK, inputs, asked.options(), call)
        return encode(answer.items[0] if single else answer.items), characters(inputs)

    async def _rerank(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.RerankBody)
        if codec.is_cross_encoder(card):
            pairs = [{"text": asked.query, "text_pair": text} for text in asked.texts]
            options = {"truncation": asked.truncate, "function_to_apply": "none" if asked.raw_scores else "sigmoid"}
            labels: Labels = await self._run(card, CLASSIFICATION_TASK, pairs, options, call)
            scores = [of_text[0].score for of_text in labels.items]
        else:
            inputs = {"source_sentence": asked.query, "sentences": asked.texts}
            similar: Similarities = await self._run(card, "sentence-similarity", inputs, asked.options(), call)
            scores = similar.scores if asked.raw_scores else [(1.0 + score) / 2.0 for score in similar.scores]
        size = len(asked.query) + characters(asked.texts)
        return encode(codec.ranks(scores, asked.texts if asked.return_text else None)), size

    async def _similarity(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.SimilarityBody)
        answer: Similarities = await self._run(card, "sentence-similarity", asked.inputs, asked.options(), call)
        return encode(answer.scores), characters(asked.inputs)

    async def _openai(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._pipeline.prepared(
            call,
            lambda: decode_embeddings(request.body, request.content_type, model=card.name),
            long=len(request.body) > LONG_BODY,
        )
        if EMBEDDING_TASK not in task_names(card):
            raise NotFound("this model makes no embeddings", param="model")
        answer = await run_embeddings(self._pipeline, call, card, asked)
        body = encode_embeddings(card.name, answer, base64_wanted=asked.encoding_format == "base64")
        return body, characters(asked.input)

    # --- the tokenizer alone

    async def _tokenize(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.TokenizeBody)
        size = characters(asked.inputs)
        encoder = await self._encoder(card)
        call.model = card.name
        body = await self._pipeline.admitted(call, lambda: codec.tokenize(encoder, asked), long=size > codec.SHORT)
        return body, size

    async def _decode(self, card: ModelCard, request: Request, call: Call) -> tuple[bytes, int]:
        asked = await self._read(call, request, codec.DecodeBody)
        encoder = await self._encoder(card)
        call.model = card.name
        texts = await self._pipeline.admitted(
            call, lambda: codec.decode_ids(encoder, asked), long=characters(asked.ids) > codec.SHORT
        )
        return encode(texts), sum(map(len, texts))

    async def _encoder(self, card: ModelCard) -> TextEncoder:
        names = task_names(card)
        task = await self._pipeline.tasks.get(card, names[0]) if names else None
        if not isinstance(task, TextTask):
            raise NotFound("the model has no tokenizer", param="model")
        return task.encoder


def describe(card: ModelCard, pipeline: Pipeline, version: str) -> dict[str, Any]:
    """The model as TEI's ``/info`` has it."""
    recipe, settings = card.recipe, pipeline.settings
    names = task_names(card)
    preprocessing = recipe.preprocessing
    kind: dict[str, Any] = {}
    if EMBEDDING_TASK in names:
        kind["embedding"] = {"pooling": "mean"}
        kind["reranker"] = {
            "kind": "bi-encoder",
            "score": "cosine of query and text; (1 + cosine) / 2 without raw_scores",
        }
    if CLASSIFICATION_TASK in names:
        labels = {str(index): label for index, label in enumerate(recipe.labels)}
        kind["classifier"] = {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
        if codec.is_cross_encoder(card):
            kind["reranker"] = {"kind": "cross-encoder", "score": "logit; logistic function of it without raw_scores"}
    return {
        "model_id": card.name,
        "model_sha": card.evidence.model_sha256 if card.evidence else None,
        "model_dtype": "int8" if recipe.quantisation == "dynamic-int8" else "float32",
        "model_type": kind,
        "max_concurrent_requests": settings.max_queue,
        "max_input_length": preprocessing.max_length if isinstance(preprocessing, TextPreprocessing) else None,
        "max_batch_tokens": recipe.max_batch_size * preprocessing.max_length
        if isinstance(preprocessing, TextPreprocessing)
        else None,
        "max_batch_requests": recipe.max_batch_size,
        "max_client_batch_size": settings.max_batch_items,
        "auto_truncate": False,
        "tokenization_workers": settings.preprocess_threads,
        "version": version,
    }
