"""JSON schemas of the Hugging Face dialect, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gateway.dialects.json_schema import nullable

_TEXT = {"type": "string", "minLength": 1}
_PICTURE = {"type": "string", "contentEncoding": "base64", "description": "A JPEG, PNG or WebP picture, or a data: URL"}
_QUESTION = {
    "type": "object",
    "required": ["question", "context"],
    "additionalProperties": False,
    "properties": {"question": _TEXT, "context": _TEXT},
}
_SENTENCES = {
    "type": "object",
    "required": ["source_sentence", "sentences"],
    "additionalProperties": False,
    "properties": {"source_sentence": _TEXT, "sentences": {"type": "array", "minItems": 1, "items": _TEXT}},
}
_PARAMETERS = {
    "type": "object",
    "description": "Options of the task; which of them apply depends on the model, others are refused.",
    "properties": nullable(
        {
            "top_k": {"type": "integer", "minimum": 1},
            "function_to_apply": {"enum": ["sigmoid", "softmax", "none"]},
            "aggregation_strategy": {"enum": ["none", "simple", "first", "average", "max"]},
            "ignore_labels": {"type": "array", "items": {"type": "string"}},
            "stride": {"type": "integer", "minimum": 0},
            "doc_stride": {"type": "integer", "minimum": 0},
            "max_answer_len": {"type": "integer", "minimum": 1},
            "max_seq_len": {"type": "integer", "minimum": 1},
            "max_question_len": {"type": "integer", "minimum": 1},
            "handle_impossible_answer": {"type": "boolean"},
            "align_to_words": {"type": "boolean"},
            "src_lang": {"type": "string"},
            "tgt_lang": {"type": "string"},
            "truncation": {"enum": [True, False, "do_not_truncate", "longest_first", "only_first", "only_second"]},
            "clean_up_tokenization_spaces": {"type": "boolean"},
            "generate_parameters": {"type": "object"},
            "candidate_labels": {"anyOf": [{"type": "array", "minItems": 1, "items": _TEXT}, _TEXT]},
            "multi_label": {"type": "boolean"},
            "hypothesis_template": {"type": "string"},
        }
    ),
}

REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "inputs": {
            "description": "What the task takes, or a list of them.",
            "anyOf": [_TEXT, _PICTURE, _QUESTION, _SENTENCES, {"type": "array", "minItems": 1}],
        },
    }
    | nullable(
        {
            "parameters": _PARAMETERS,
            "normalize": {"type": "boolean", "default": True, "description": "feature-extraction"},
            "truncate": {"type": "boolean", "default": True, "description": "feature-extraction"},
            "truncation_direction": {"enum": ["left", "right"], "description": "feature-extraction"},
            "dimensions": {"type": "integer", "minimum": 1, "description": "feature-extraction"},
            "prompt_name": {"type": "string", "description": "feature-extraction"},
        }
    ),
}

_LABEL = {
    "type": "object",
    "required": ["label", "score"],
    "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
}
_ENTITY = {
    "type": "object",
    "required": ["score", "word", "start", "end"],
    "properties": {
        "entity": {"type": "string"},
        "entity_group": {"type": "string"},
        "index": {"type": "integer"},
        "score": {"type": "number"},
        "word": {"type": "string"},
        "start": {"type": "integer"},
        "end": {"type": "integer"},
    },
}
_SPAN = {
    "type": "object",
    "required": ["answer", "score", "start", "end"],
    "properties": {
        "answer": {"type": "string"},
        "score": {"type": "number"},
        "start": {"type": "integer"},
        "end": {"type": "integer"},
    },
}
_TRANSLATION = {
    "type": "object",
    "required": ["translation_text"],
    "properties": {"translation_text": {"type": "string"}},
}

ANSWER: dict[str, Any] = {
    "description": "By task: labels, entities, an answer, translations, numbers; lists of them for a list of inputs.",
    "anyOf": [
        {"type": "array", "items": {"anyOf": [_LABEL, _ENTITY, _SPAN, _TRANSLATION, {"type": "number"}]}},
        {"type": "array", "items": {"type": "array"}},
        _SPAN,
    ],
}

INFO: dict[str, Any] = {
    "type": "object",
    "required": ["model_id", "pipeline_tag", "tasks", "ready"],
    "properties": {
        "model_id": {"type": "string"},
        "model_sha": {"type": ["string", "null"]},
        "pipeline_tag": {"type": ["string", "null"]},
        "tasks": {"type": "array", "items": {"type": "string"}},
        "max_input_length": {"type": ["integer", "null"]},
        "ready": {"type": "boolean"},
        "card": {"type": "object"},
    },
}

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error", "error_type", "request_id"],
    "properties": {
        "error": {"type": "string"},
        "error_type": {"type": "string"},
        "request_id": {"type": "string"},
    },
}

HEALTH: dict[str, Any] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"const": "ok"}},
}
