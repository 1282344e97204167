"""OpenAI's API (``/v1``): models and embeddings, as the ``openai`` packages speak it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from gateway.catalog import ModelCard
from gateway.dialects.body import LONG_BODY
from gateway.dialects.http import Request, Response, Route
from gateway.dialects.json import decode_json, encode
from gateway.dialects.json_schema import nullable
from gateway.errors import GatewayError, Invalid, NotFound, UnsupportedMediaType
from gateway.pipeline import Pipeline
from gateway.tasks import task_names
from gateway.tasks.answers import Embeddings
from gateway.types import Call

EMBEDDING_TASK = "feature-extraction"
OWNER = "tidegate"

_KINDS = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {
    "unauthenticated": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "budget_exceeded": "insufficient_quota",
}


class EmbeddingsBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/embeddings``. Without ``encoding_format`` vectors are lists of numbers."""

    input: Any
    model: str = ""
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class OpenAI:
    """The dialect."""

    name = "openai"
    error_schema: Mapping[str, Any] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string"},
                },
            }
        },
    }

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @property
    def routes(self) -> list[Route]:
        """Every operation under ``/v1``."""
        tags = ("OpenAI",)
        return [
            Route("GET", "/v1/models", "models", self.models, summary="Models", tags=tags, response_schema=_MODEL_LIST),
            Route("GET", "/v1/models/{id}", "models", self.model, summary="A model", tags=tags, response_schema=_MODEL,
                  path_example={"id": "embeddings"}),
            Route(
                "POST", "/v1/embeddings", "embeddings", self.embeddings, summary="Embeddings of texts or token ids",
                tags=tags, request_schema=EMBEDDINGS_REQUEST, response_schema=EMBEDDINGS_ANSWER,
                example={"model": "embeddings", "input": ["one text", "another"], "encoding_format": "float"},
            ),
        ]  # fmt: skip

    async def models(self, _request: Request, call: Call) -> Response:
        """``GET /v1/models``: those that the key may use."""
        cards = self._pipeline.cards(call)
        data = [describe(card, ready=self._pipeline.is_ready(card.name)) for card in cards]
        return Response(200, encode({"object": "list", "data": data}))

    async def model(self, request: Request, call: Call) -> Response:
        """``GET /v1/models/{id}``."""
        card = self._pipeline.card(call, request.params["id"])
        return Response(200, encode(describe(card, ready=self._pipeline.is_ready(card.name))))

    async def embeddings(self, request: Request, call: Call) -> Response:
        """``POST /v1/embeddings``."""
        asked = await self._pipeline.prepared(
            call,
            lambda: decode_embeddings(request.body, request.content_type),
            long=len(request.body) > LONG_BODY,
        )
        card = self._pipeline.card(call, asked.model)
        if EMBEDDING_TASK not in task_names(card):
            raise NotFound("this model makes no embeddings", param="model")
        answer = await run_embeddings(self._pipeline, call, card, asked)
        return Response(200, encode_embeddings(card.name, answer, base64_wanted=asked.encoding_format == "base64"))

    def encode_error(self, error: GatewayError, call: Call) -> Response:  # noqa: ARG002 - the front adds the request id
        """``{"error": {"message", "type", "param", "code"}}``."""
        return Response(error.status, encode({"error": error_object(error)}))


async def run_embeddings(pipeline: Pipeline, call: Call, card: ModelCard, asked: EmbeddingsBody) -> Embeddings:
    """The vectors of ``asked``, at length 1. A text that is too long is refused, as OpenAI does."""
    options = {"dimensions": asked.dimensions, "truncate": False}
    answer: Embeddings = await pipeline.run_task(call, card.name, EMBEDDING_TASK, asked.input, options)
    return answer


def decode_embeddings(body: bytes, content_type: str | None, model: str | None = None) -> EmbeddingsBody:
    """The request in ``body``; it may leave out the model if the path names one (``model``).

    Raises ``Malformed``, ``Invalid``, ``UnsupportedMediaType``.
    """
    if content_type not in {None, "application/json"}:
        raise UnsupportedMediaType("Content-Type must be application/json")
    asked = decode_json(body, EmbeddingsBody)
    if not asked.model and model is None:
        raise Invalid("model is missing", param="model")
    if asked.dimensions is not None and asked.dimensions < 1:
        raise Invalid("dimensions must be at least 1", param="dimensions")
    return asked


def encode_embeddings(model: str, answer: Embeddings, *, base64_wanted: bool) -> bytes:
    """The answer's body; base64 is of little-endian float32."""
    vectors = answer.vectors.astype("<f4", copy=False)
    listed: list[Any] = (
        [base64.b64encode(vector.tobytes()).decode() for vector in vectors] if base64_wanted else vectors.tolist()
    )
    tokens = sum(answer.tokens)
    return encode(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": embedding}
                for index, embedding in enumerate(listed)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def error_object(error: GatewayError) -> dict[str, Any]:
    """OpenAI's error: message, type, param, code. What tasks call ``inputs`` is ``input`` here."""
    param, message = error.param, error.message
    if param == "inputs":
        param, message = "input", message.replace("inputs", "input", 1)
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "message": message,
        "type": kind,
        "param": param,
        "code": _CODES.get(error.code, error.code),
    }


def describe(card: ModelCard, *, ready: bool) -> dict[str, Any]:
    """The model as OpenAI lists it, and its card beside."""
    return {
        "id": card.name,
        "object": "model",
        "created": created(card),
        "owned_by": OWNER,
        "tidegate": {**card.public(), "ready": ready, "tasks": list(task_names(card))},
    }


def created(card: ModelCard) -> int:
    """When the model was built, in seconds since 1970; 0 if it was not."""
    if card.evidence is None:
        return 0
    return int(datetime.fromisoformat(card.evidence.built_at.replace("Z", "+00:00")).timestamp())


_MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "tidegate": {"type": "object", "description": "The model's card, its tasks, and whether it is ready."},
    },
}
_MODEL_LIST: dict[str, Any] = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}
_TOKEN_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
EMBEDDINGS_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["model", "input"],
    "additionalProperties": False,
    "properties": {
        "model": {"type": "string"},
        "input": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
                _TOKEN_IDS,
                {"type": "array", "minItems": 1, "items": _TOKEN_IDS},
            ]
        },
        **nullable(
            {
                "dimensions": {"type": "integer", "minimum": 1},
                "encoding_format": {"enum": ["float", "base64"]},
                "user": {"type": "string"},
            }
        ),
    },
}
EMBEDDINGS_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "model": {"type": "string"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer"},
                    "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "total_tokens"],
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
        },
    },
}
