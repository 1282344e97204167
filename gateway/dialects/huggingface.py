"""Hugging Face's task API (``/hf/models/{model}``) as ``huggingface_hub.InferenceClient`` speaks it.

The client posts every task to the one URL of its model, so the task follows from the model and from
the form of the inputs; ``/pipeline/{task}`` names it. Whether an answer is a list or an object is
exact here, because the client is strict about that and about nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.catalog import ModelCard, TextPreprocessing
from gateway.dialects import huggingface_schemas as schemas
from gateway.dialects.body import LONG_BODY
from gateway.dialects.http import Request, Response, Route
from gateway.dialects.json import decode, encode
from gateway.errors import GatewayError, Invalid, Malformed, NotFound, Unavailable, UnsupportedMediaType
from gateway.pipeline import Pipeline
from gateway.tasks import task_names
from gateway.tasks.answers import (
    Answers,
    Embeddings,
    Entities,
    Labels,
    Similarities,
    Span,
    TokenEmbeddings,
    Translations,
)
from gateway.tasks.options import UnknownOptions
from gateway.types import Call

IMAGE_TASK = "image-classification"
MEDIA_TYPES = ("application/json", "image/jpeg", "image/png", "image/webp", "application/octet-stream")

_UNSAID = frozenset({None, "application/octet-stream", "application/x-www-form-urlencoded"})
"""Content types that say nothing: none, what ``curl -d`` and ``--data-binary`` send, and raw bytes."""


@dataclass(slots=True, frozen=True)
class TaskCall:
    """What a body asks for."""

    task: str
    inputs: Any
    options: Mapping[str, Any]


class HuggingFace:
    """The dialect."""

    name = "huggingface"
    error_schema = schemas.ERROR

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @property
    def routes(self) -> list[Route]:
        """Every operation under ``/hf``."""
        tags = ("Hugging Face",)
        named = {"model": "sentiment", "task": "text-classification"}
        common: dict[str, Any] = {
            "path_example": named,
            "tags": tags,
            "request_schema": schemas.REQUEST,
            "response_schema": schemas.ANSWER,
            "request_media_types": MEDIA_TYPES,
            "example": {"inputs": "A fine film.", "parameters": {"top_k": 1}},
        }
        return [
            Route("POST", "/hf/models/{model}", "task", self.run, summary="Run the model's task", **common),
            Route(
                "POST",
                "/hf/models/{model}/pipeline/{task}",
                "task",
                self.run,
                summary="Run one of the model's tasks by name",
                **common,
            ),
            Route(
                "GET", "/hf/models/{model}/info", "info", self.info,
                summary="The model's tasks, limits and card", tags=tags, response_schema=schemas.INFO,
                path_example=named,
            ),
            Route(
                "GET", "/hf/models/{model}/health", "health", self.health,
                summary="Whether the model can be inferred", tags=tags, response_schema=schemas.HEALTH,
                path_example=named,
            ),
        ]  # fmt: skip

    async def run(self, request: Request, call: Call) -> Response:
        """``POST /hf/models/{model}`` and ``…/pipeline/{task}``."""
        card = self._pipeline.card(call, request.params["model"])
        body, kind = request.body, request.content_type
        long = len(body) > LONG_BODY and is_json(body, kind, pictures=card.recipe.task == IMAGE_TASK)
        asked = await self._pipeline.prepared(
            call, lambda: decode_call(card, request.params.get("task"), body, kind), long=long
        )
        call.operation = asked.task
        answer = await self._pipeline.run_task(call, card.name, asked.task, asked.inputs, asked.options)
        return Response(200, encode_answer(asked.task, answer))

    async def info(self, request: Request, call: Call) -> Response:
        """``GET …/info``: what ``InferenceClient.get_endpoint_info`` shows."""
        card = self._pipeline.card(call, request.params["model"])
        return Response(200, encode(describe(card, ready=self._pipeline.is_ready(card.name))))

    async def health(self, request: Request, call: Call) -> Response:
        """``GET …/health``: 200 if the model is ready. Raises ``Unavailable``."""
        card = self._pipeline.card(call, request.params["model"])
        if not self._pipeline.is_ready(card.name):
            raise Unavailable("the model is not ready", retry_after_s=1.0)
        return Response(200, b'{"status":"ok"}')

    def encode_error(self, error: GatewayError, call: Call) -> Response:
        """``{"error": "<string>"}`` and ``X-Error-Message``, which the client shows.

        An unknown option is 400 as on Hugging Face, everything else keeps its status.
        """
        status = 400 if isinstance(error, UnknownOptions) else error.status
        body = {"error": error.message, "error_type": error.code, "request_id": call.request_id}
        return Response(status, encode(body), {"X-Error-Message": header_safe(error.message)})


def decode_call(card: ModelCard, task: str | None, body: bytes, content_type: str | None) -> TaskCall:
    """What ``body`` asks of ``card``'s model; ``task`` is the one that the path names.

    Raises ``NotFound`` (the model has no task, or not this one), ``UnsupportedMediaType``,
    ``Malformed`` and ``Invalid``.
    """
    served = task_names(card)
    if not served:
        raise NotFound("the model has no task: it is served over /v2 only", param="task")
    if task is not None and task not in served:
        raise NotFound(f"the model does not serve the task {task[:64]!r}; it serves: {', '.join(served)}", param="task")
    if is_json(body, content_type, pictures=served[0] == IMAGE_TASK):
        inputs, options = decode_body(body)
        return TaskCall(task or implied_task(served, inputs, options), inputs, options)
    if not body:
        raise Malformed("the body is empty")
    return TaskCall(IMAGE_TASK, body, {})


def is_json(body: bytes, content_type: str | None, *, pictures: bool) -> bool:
    """Whether the body is JSON rather than a picture. Raises ``UnsupportedMediaType``."""
    if content_type in _UNSAID:
        return not pictures or body.lstrip()[:1] == b"{"
    if content_type == "application/json" or (content_type or "").endswith("+json"):
        return True
    if pictures and (content_type or "").startswith("image/"):
        return False
    kinds = "application/json or an image type" if pictures else "application/json"
    raise UnsupportedMediaType(f"Content-Type must be {kinds}")


def decode_body(body: bytes) -> tuple[Any, dict[str, Any]]:
    """``inputs`` and the options of a JSON body.

    Options stand in ``parameters``; feature extraction has them at the top level. ``options``
    (``use_cache``, ``wait_for_model``) is of another time and ignored. A null is an option not given.
    """
    message = decode(body)
    if not isinstance(message, dict):
        raise Invalid('the body must be an object with "inputs"')
    if "inputs" not in message:
        raise Invalid("inputs is missing", param="inputs")
    parameters = message.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise Invalid("parameters must be an object", param="parameters")
    options = {name: value for name, value in message.items() if name not in {"inputs", "parameters", "options"}}
    options |= parameters or {}
    return message["inputs"], options


def implied_task(served: tuple[str, ...], inputs: Any, options: Mapping[str, Any]) -> str:
    """The task that inputs and options are for, among those the model serves; its own otherwise."""
    if "sentence-similarity" in served and isinstance(inputs, dict) and "source_sentence" in inputs:
        return "sentence-similarity"
    if "zero-shot-classification" in served and "candidate_labels" in options:
        return "zero-shot-classification"
    return served[0]


def encode_answer(task: str, answer: Any) -> bytes:
    """The body of an answer of :mod:`gateway.tasks.answers`."""
    if isinstance(answer, Labels) and task == "text-classification":
        return encode(answer.items)  # a list of lists, for a single text too
    return encode(_SHAPES[type(answer)](answer))


def _one_or_all(answer: Labels | Entities | TokenEmbeddings) -> Any:
    return answer.items[0] if answer.single else answer.items


def _spans(answer: Answers) -> Any:
    shaped: list[Span | list[Span]] = [spans[0] if answer.top_k == 1 else spans for spans in answer.items]
    return shaped[0] if answer.single else shaped


def _translations(answer: Translations) -> Any:
    return [{"translation_text": item.text} for item in answer.items]


def _vectors(answer: Embeddings) -> Any:
    return answer.vectors[0].tolist() if answer.single else answer.vectors.tolist()


def _matrices(answer: TokenEmbeddings) -> Any:
    matrices = [matrix.tolist() for matrix in answer.items]
    return matrices[0] if answer.single else matrices


def _scores(answer: Similarities) -> Any:
    return answer.scores


_SHAPES: Mapping[type, Callable[[Any], Any]] = {
    Labels: _one_or_all,
    Entities: _one_or_all,
    Answers: _spans,
    Translations: _translations,
    Embeddings: _vectors,
    TokenEmbeddings: _matrices,
    Similarities: _scores,
}


def describe(card: ModelCard, *, ready: bool) -> dict[str, Any]:
    """The model as ``/info`` shows it."""
    preprocessing = card.recipe.preprocessing
    return {
        "model_id": card.name,
        "model_sha": card.evidence.model_sha256 if card.evidence else None,
        "pipeline_tag": card.recipe.task,
        "tasks": list(task_names(card)),
        "max_input_length": preprocessing.max_length if isinstance(preprocessing, TextPreprocessing) else None,
        "ready": ready,
        "card": card.public(),
    }


def header_safe(message: str) -> str:
    """``message`` as one line of printable ASCII, for a header."""
    return "".join(character if " " <= character <= "~" else "?" for character in message)[:512]
