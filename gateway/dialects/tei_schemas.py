"""JSON schemas of the text-embeddings-inference dialect, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gateway.dialects.json_schema import nullable
from gateway.dialects.openai import EMBEDDINGS_REQUEST

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_TEXTS: dict[str, Any] = {"type": "array", "minItems": 1, "items": _TEXT}
_IDS: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_MANY_IDS: dict[str, Any] = {"type": "array", "minItems": 1, "items": _IDS}
_ENCODABLE: dict[str, Any] = {"anyOf": [_TEXT, _TEXTS, _IDS, _MANY_IDS]}
_TRUNCATE: dict[str, Any] = {"type": "boolean", "default": False}
_DIRECTION: dict[str, Any] = {"enum": ["left", "right", "Left", "Right"]}
_NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number"}}


def _body(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": nullable(
            {**properties, "parameters": {"type": "object", "description": "The same options, if not beside."}},
            required,
        ),
        "additionalProperties": False,
    }


_EMBED_OPTIONS: dict[str, Any] = {
    "truncate": _TRUNCATE,
    "truncation_direction": _DIRECTION,
    "prompt_name": {"type": "string"},
}
EMBED = _body(
    ["inputs"],
    inputs=_ENCODABLE,
    normalize={"type": "boolean", "default": True},
    dimensions={"type": "integer", "minimum": 1},
    **_EMBED_OPTIONS,
)
EMBED_ALL = _body(["inputs"], inputs=_ENCODABLE, **_EMBED_OPTIONS)
PREDICT = _body(
    ["inputs"],
    inputs={
        "description": "A text, a pair, or a list of lists of one or two texts.",
        "anyOf": [
            _TEXT,
            {**_TEXTS, "maxItems": 2},
            {"type": "array", "minItems": 1, "items": {**_TEXTS, "maxItems": 2}},
        ],
    },
    truncate=_TRUNCATE,
    raw_scores={"type": "boolean", "default": False},
)
RERANK = _body(
    ["query", "texts"],
    query=_TEXT,
    texts=_TEXTS,
    truncate=_TRUNCATE,
    truncation_direction=_DIRECTION,
    raw_scores={"type": "boolean", "default": False},
    return_text={"type": "boolean", "default": False},
)
SIMILARITY = _body(
    ["inputs"],
    inputs={
        "type": "object",
        "required": ["source_sentence", "sentences"],
        "additionalProperties": False,
        "properties": {"source_sentence": _TEXT, "sentences": _TEXTS},
    },
    truncate=_TRUNCATE,
    truncation_direction=_DIRECTION,
)
TOKENIZE = _body(
    ["inputs"],
    inputs={"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]},
    add_special_tokens={"type": "boolean", "default": True},
    prompt_name={"type": "string"},
)
DECODE = _body(["ids"], ids={"anyOf": [_IDS, _MANY_IDS]}, skip_special_tokens={"type": "boolean", "default": True})
OWN: dict[str, Any] = {"anyOf": [EMBED, PREDICT]}
OPENAI: dict[str, Any] = {**EMBEDDINGS_REQUEST, "required": ["input"]}

_LABEL_LIST: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["label", "score"],
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
    },
}
VECTORS: dict[str, Any] = {"type": "array", "items": _NUMBERS}
MATRICES: dict[str, Any] = {"type": "array", "items": VECTORS}
LABELS: dict[str, Any] = {"anyOf": [_LABEL_LIST, {"type": "array", "items": _LABEL_LIST}]}
OWN_ANSWER: dict[str, Any] = {"anyOf": [VECTORS, LABELS]}
SCORES = _NUMBERS
RANKS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "score"],
        "properties": {"index": {"type": "integer"}, "score": {"type": "number"}, "text": {"type": "string"}},
    },
}
TOKENS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["id", "text", "special", "start", "stop"],
            "properties": {
                "id": {"type": "integer"},
                "text": {"type": "string"},
                "special": {"type": "boolean"},
                "start": {"type": ["integer", "null"]},
                "stop": {"type": ["integer", "null"]},
            },
        },
    },
}
TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
INFO: dict[str, Any] = {
    "type": "object",
    "required": ["model_id", "model_type", "max_input_length", "max_client_batch_size", "version"],
    "properties": {
        "model_id": {"type": "string"},
        "model_sha": {"type": ["string", "null"]},
        "model_dtype": {"type": "string"},
        "model_type": {"type": "object"},
        "max_input_length": {"type": ["integer", "null"]},
        "max_client_batch_size": {"type": "integer"},
        "version": {"type": "string"},
    },
}

ERROR: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "required": ["error", "error_type"],
            "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
        },
        {
            "type": "object",
            "description": "OpenAI's route.",
            "required": ["message", "code", "type"],
            "properties": {"message": {"type": "string"}, "code": {"type": "integer"}, "type": {"type": "string"}},
        },
    ]
}

EXAMPLE_MODELS = {"/predict": "sentiment"}
"""Path → a starter model that serves it, where it is not ``embeddings``."""
_INPUTS: dict[str, Any] = {"inputs": ["one text", "another"]}
_SENTENCES = {"source_sentence": "one text", "sentences": ["another", "a third"]}
EXAMPLES: dict[str, Any] = {
    "": _INPUTS,
    "/": _INPUTS,
    "/invocations": _INPUTS,
    "/embed": _INPUTS,
    "/embed_all": {"inputs": "one text"},
    "/predict": {"inputs": "A fine film."},
    "/rerank": {"query": "one text", "texts": ["another", "a third"], "return_text": True},
    "/similarity": {"inputs": _SENTENCES},
    "/tokenize": _INPUTS,
    "/decode": {"ids": [101, 7592, 102]},
    "/embeddings": {"input": "one text"},
    "/v1/embeddings": {"input": ["one text"], "encoding_format": "base64"},
}
"""Path → a body that works."""
