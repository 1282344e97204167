"""Bodies of text-embeddings-inference's API, in and out: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from gateway.catalog import ModelCard
from gateway.dialects.http import Request
from gateway.dialects.json import decode, encode
from gateway.errors import (
    BadUpstream,
    DeadlineExceeded,
    GatewayError,
    Internal,
    Invalid,
    RateLimited,
    Unavailable,
    UnsupportedMediaType,
)
from gateway.tasks.inputs import EmptyInput
from gateway.tasks.options import parse_fields
from gateway.tasks.rows import role
from gateway.tasks.text import LONG_TEXT, TextEncoder
from gateway.types import Call

SHORT = LONG_TEXT
"""Characters up to which tokenising is done where it is asked for."""


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the bodies: fields, and which of them are options of the task."""

    task_options: ClassVar[Mapping[str, str]] = {}
    """Field names to option names."""

    def options(self) -> dict[str, Any]:
        """What the task is asked with."""
        return {option: getattr(self, field) for field, option in self.task_options.items()}


class EmbedBody(Body, frozen=True, kw_only=True):
    """``/embed``: always a list of vectors."""

    inputs: Any
    truncate: bool = False
    truncation_direction: str = "right"
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None
    task_options: ClassVar[Mapping[str, str]] = {
        name: name for name in ("truncate", "truncation_direction", "prompt_name", "normalize", "dimensions")
    }


class EmbedAllBody(Body, frozen=True, kw_only=True):
    """``/embed_all``: one vector a token, not normalised."""

    inputs: Any
    truncate: bool = False
    truncation_direction: str = "right"
    prompt_name: str | None = None
    task_options: ClassVar[Mapping[str, str]] = {
        name: name for name in ("truncate", "truncation_direction", "prompt_name")
    }

    def options(self) -> dict[str, Any]:
        """Those of ``/embed``, and that tokens are wanted."""
        return {**Body.options(self), "token_embeddings": True}


class PredictBody(Body, frozen=True, kw_only=True):
    """``/predict``."""

    inputs: Any
    truncate: bool = False
    raw_scores: bool = False

    def options(self) -> dict[str, Any]:
        """Raw scores are logits."""
        return {"truncation": self.truncate, "function_to_apply": "none" if self.raw_scores else None}


class RerankBody(Body, frozen=True, kw_only=True):
    """``/rerank``."""

    query: str
    texts: list[str]
    truncate: bool = False
    truncation_direction: str = "right"
    raw_scores: bool = False
    return_text: bool = False
    task_options: ClassVar[Mapping[str, str]] = {name: name for name in ("truncate", "truncation_direction")}


class SimilarityBody(Body, frozen=True, kw_only=True):
    """``/similarity``; options may stand in ``parameters``."""

    inputs: dict[str, Any]
    truncate: bool = False
    truncation_direction: str = "right"
    task_options: ClassVar[Mapping[str, str]] = {name: name for name in ("truncate", "truncation_direction")}


class TokenizeBody(Body, frozen=True, kw_only=True):
    """``/tokenize``."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeBody(Body, frozen=True, kw_only=True):
    """``/decode``."""

    ids: list[Any]
    skip_special_tokens: bool = True


BodyType = TypeVar("BodyType", bound=Body)


def decode_body(request: Request, kind: type[BodyType]) -> BodyType:
    """The request's body as ``kind``; what stands in ``parameters`` counts as if it stood beside.

    Raises ``Malformed``, ``Invalid``, ``UnsupportedMediaType``.
    """
    if request.content_type not in {None, "application/json"}:
        raise UnsupportedMediaType("Content-Type must be application/json")
    message = decode(request.body)
    if not isinstance(message, dict):
        raise Invalid("the body must be an object")
    parameters = message.pop("parameters", None)
    if parameters is not None and not isinstance(parameters, dict):
        raise Invalid("parameters must be an object", param="parameters")
    fields = {**message, **(parameters or {})}
    direction = fields.get("truncation_direction")
    if isinstance(direction, str):  # TEI's own clients write Left and Right
        fields["truncation_direction"] = direction.lower()
    return parse_fields(kind, fields)


def predict_inputs(inputs: Any) -> tuple[list[Any], bool]:
    """TEI's inputs of ``/predict`` as texts and pairs, and whether it was one: ``"a"``, ``["a"]`` and the pair
    ``["a", "b"]`` are one, ``[["a"], ["a", "b"]]`` are two.
    """
    if isinstance(inputs, str):
        return [inputs], True
    if not isinstance(inputs, list):
        raise Invalid("inputs must be a text, a pair of texts, or a list of such", param="inputs")
    if not inputs:
        raise EmptyInput("inputs is empty", param="inputs")
    if all(isinstance(item, str) for item in inputs):
        return [_text_or_pair(inputs)], True
    return [_text_or_pair(item) for item in inputs], False


def _text_or_pair(texts: Any) -> Any:
    if isinstance(texts, list) and len(texts) == 1:
        return texts[0]
    if isinstance(texts, list) and len(texts) == 2:
        return {"text": texts[0], "text_pair": texts[1]}
    raise Invalid("inputs: one text or two make an input of /predict", param="inputs")


def ranks(scores: Sequence[float], texts: Sequence[str] | None) -> list[dict[str, Any]]:
    """Best first: ``index`` of the text, ``score``, and ``text`` if asked for. Equal scores keep their order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [
        {"index": index, "score": scores[index]} | ({"text": texts[index]} if texts is not None else {})
        for index in order
    ]


def tokenize(encoder: TextEncoder, asked: TokenizeBody) -> bytes:
    """The answer: of each text its tokens with id, text, whether special, characters from ``start`` to ``stop``.

    Written text by text: the tokens of all are far more than what is written of them.
    """
    texts = encoder.check_all([asked.inputs] if isinstance(asked.inputs, str) else asked.inputs)
    prompt = encoder.prompt(asked.prompt_name)
    written = (encode(_tokens(encoder, prompt + text, special=asked.add_special_tokens)) for text in texts)
    return b"[" + b",".join(written) + b"]"


def _tokens(encoder: TextEncoder, text: str, *, special: bool) -> list[dict[str, Any]]:
    encoding = encoder.tokenizer.encode(text, add_special_tokens=special)
    parts = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [
        {"id": token_id, "text": token, "special": True, "start": None, "stop": None}
        if is_special
        else {"id": token_id, "text": text[start:stop], "special": False, "start": start, "stop": stop}
        for token_id, token, (start, stop), is_special in parts
    ]


def decode_ids(encoder: TextEncoder, asked: DecodeBody) -> list[str]:
    """The text of each list of ids. Raises ``Invalid`` for an id outside the vocabulary."""
    lists = asked.ids if asked.ids and isinstance(asked.ids[0], list) else [asked.ids]
    encoder.check_count(len(lists), "ids")
    for ids in lists:
        if not isinstance(ids, list):
            raise Invalid("ids must be a list of token ids, or a list of such lists", param="ids")
        encoder.check_ids(ids, "ids")
    encoder.check_total(lists, "ids")
    texts: list[str] = encoder.tokenizer.decode_batch(lists, skip_special_tokens=asked.skip_special_tokens)
    return texts


def is_cross_encoder(card: ModelCard) -> bool:
    """Whether the model scores pairs: a text classifier with one class."""
    return card.recipe.task == "text-classification" and any(
        role(spec.name) == "logits" and spec.shape[-1:] == (1,) for spec in card.recipe.outputs
    )


def compute_headers(call: Call, size: int, total_ns: int) -> dict[str, str]:
    """TEI's timing headers, in whole milliseconds as TEI has them."""
    stages = call.stages
    return {
        "x-compute-type": "tidegate",
        "x-compute-time": _milliseconds(total_ns),
        "x-compute-characters": str(size),
        "x-compute-tokens": str(call.units.tokens),
        "x-total-time": _milliseconds(total_ns),
        "x-tokenization-time": _milliseconds(stages.get("preprocess", 0)),
        "x-queue-time": _milliseconds(stages.get("admit", 0)),
        "x-inference-time": _milliseconds(stages.get("infer", 0)),
    }


def _milliseconds(nanoseconds: int) -> str:
    return str(round(nanoseconds / 1e6))


def error_type(error: GatewayError) -> str:
    """TEI's name for what went wrong."""
    if isinstance(error, EmptyInput):
        return "Empty"
    if isinstance(error, RateLimited):
        return "Overloaded"
    if isinstance(error, Unavailable):
        return "Unhealthy"
    if isinstance(error, (BadUpstream, DeadlineExceeded, Internal)):
        return "Backend"
    return "Validation"
