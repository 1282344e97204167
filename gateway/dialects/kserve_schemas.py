"""JSON schemas of the Open Inference Protocol, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gateway.dialects.json_schema import nullable

_TEXT: dict[str, Any] = {"type": "string"}
_DATATYPES = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
_DATATYPE: dict[str, Any] = {"enum": _DATATYPES}
_SHAPE: dict[str, Any] = {"type": "array", "maxItems": 16, "items": {"type": "integer", "minimum": 1}}
_SIGNED_SHAPE: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": -1}}
_DATA: dict[str, Any] = {"type": "array", "description": "Row by row, nested or flat."}
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "description": "For the model. Names that begin with triton_, sequence_ or shared_memory_ are refused.",
    "properties": {
        "priority": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "description": "1 is the highest."},
        "timeout": {"type": "integer", "minimum": 0, "description": "Deadline in microseconds."},
        "binary_data_output": {"type": "boolean", "default": False},
    },
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}

ERROR: dict[str, Any] = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}


_HINT: dict[str, Any] = {"type": "string", "description": "Of KServe's and MLServer's clients; changes nothing."}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "additionalProperties": False, "properties": properties}


INFER: dict[str, Any] = _object(
    ["inputs"],
    **nullable({"id": _TEXT, "parameters": _PARAMETERS}),
    model_name={"type": ["string", "null"], "description": "The model of the path, if any."},
    inputs={
        "type": "array",
        "items": _object(
            ["name", "shape", "datatype"],
            name=_TEXT,
            shape=_SHAPE,
            datatype=_DATATYPE,
            data=_DATA,
            **nullable(
                {"parameters": _object([], binary_data_size={"type": "integer", "minimum": 0}, content_type=_HINT)}
            ),
        ),
    },
    **nullable(
        {
            "outputs": {
                "type": "array",
                "items": _object(
                    ["name"],
                    name=_TEXT,
                    **nullable(
                        {
                            "parameters": _object(
                                [],
                                binary_data={"type": "boolean", "default": False},
                                classification={"type": "integer", "minimum": 0, "maximum": 100_000},
                                content_type=_HINT,
                            )
                        }
                    ),
                ),
            }
        }
    ),
)
INFER_EXAMPLE: dict[str, Any] = {
    "id": "1",
    "inputs": [{"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}],
    "outputs": [{"name": "OUTPUT", "parameters": {"classification": 3}}],
}
INFER_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "parameters": {"type": "object"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": _TEXT,
                    "datatype": _DATATYPE,
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "data": _DATA,
                    "parameters": {"type": "object"},
                },
            },
        },
    },
}
GENERATE: dict[str, Any] = {
    "type": "object",
    "description": "A member for each input of the model; others are parameters.",
    "properties": {
        "id": _TEXT,
        "parameters": {"type": "object", "description": "The same, if not beside."},
    },
}
GENERATE_ANSWER: dict[str, Any] = {
    "type": "object",
    "description": "A member for each output of the model.",
    "required": ["model_name", "model_version"],
    "properties": {"id": _TEXT, "model_name": _TEXT, "model_version": _TEXT},
}
SERVER: dict[str, Any] = {
    "type": "object",
    "required": ["name", "version", "extensions"],
    "properties": {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}},
}
_TENSORS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {"name": _TEXT, "datatype": _DATATYPE, "shape": _SIGNED_SHAPE},
    },
}
MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": _TENSORS,
        "outputs": _TENSORS,
    },
}
CONFIGURATION: dict[str, Any] = {
    "type": "object",
    "description": "Triton's ModelConfig.",
    "required": ["name", "max_batch_size", "input", "output"],
    "properties": {"name": _TEXT, "max_batch_size": {"type": "integer"}},
}
STATISTICS: dict[str, Any] = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {
        "model_stats": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "version", "inference_count", "execution_count"],
                "properties": {
                    "name": _TEXT,
                    "version": _TEXT,
                    "inference_count": {"type": "integer", "minimum": 0},
                    "execution_count": {"type": "integer", "minimum": 0},
                },
            },
        }
    },
}
INDEX: dict[str, Any] = _object([], ready={"type": "boolean", "default": False})
INDEX_ANSWER: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT},
    },
}
LOAD: dict[str, Any] = _object([], parameters=_object([], unload_dependents={"type": "boolean"}))
