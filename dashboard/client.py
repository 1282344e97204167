"""The gateway as the dashboard sees it: one HTTP client, typed answers, one-line failures.

Paths, bodies and headers are those of the public API (Hugging Face tasks, OpenAI model list, usage);
nothing here is private to the dashboard.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

T = TypeVar("T")

STAGES = ("auth", "admit", "preprocess", "infer", "postprocess", "record")
"""Stages of ``Server-Timing`` in the order a request passes them."""

FailureKind = Literal[
    "unreachable", "timeout", "key", "budget", "forbidden", "missing", "input", "busy", "down", "error"
]


class GatewayFailure(Exception):
    """A call without an answer; ``str()`` is one line for a visitor and never holds the key."""

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s
        self.request_id = request_id


@dataclass(slots=True, frozen=True)
class Metering:
    """What one call took and cost, as its response headers say."""

    elapsed_ms: float
    """Milliseconds measured here, from sending to the last byte."""
    stages: dict[str, float] = field(default_factory=dict)
    """Milliseconds by stage name, from ``Server-Timing``."""
    tokens: int = 0
    pixels: int = 0
    compute_ms: float | None = None
    cost_usd: float | None = None
    usage_id: str | None = None
    request_id: str | None = None

    @property
    def total_ms(self) -> float:
        """Milliseconds in the gateway: ``total``, or the sum of the stages where it is not given."""
        return self.stages.get("total", math.fsum(self.stages.get(name, 0.0) for name in STAGES))

    @property
    def network_ms(self) -> float:
        """Milliseconds that passed outside the gateway's own clock."""
        return max(0.0, self.elapsed_ms - self.total_ms)

    def split(self) -> list[tuple[str, float]]:
        """Milliseconds by stage in passing order, then ``other`` (in the gateway, no stage) and ``network``."""
        known = [(name, self.stages[name]) for name in STAGES if name in self.stages]
        rest = self.total_ms - math.fsum(duration for _, duration in known)
        if rest > 0.005:  # less is rounding
            known.append(("other", rest))
        known.append(("network", self.network_ms))
        return known


@dataclass(slots=True, frozen=True)
class Answer(Generic[T]):
    """A model's answer and what it took."""

    value: T
    metering: Metering


@dataclass(slots=True, frozen=True)
class Score:
    """A label and its score, 0 to 1."""

    label: str
    score: float


@dataclass(slots=True, frozen=True)
class Entity:
    """A named entity; ``start`` and ``end`` count characters of the text."""

    group: str
    word: str
    score: float
    start: int
    end: int


@dataclass(slots=True, frozen=True)
class Span:
    """An answer cut out of its context; ``start`` and ``end`` count characters of the context."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(slots=True, frozen=True)
class Model:
    """One item of ``GET /v1/models`` with its card."""

    name: str
    ready: bool
    tasks: tuple[str, ...]
    card: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The card's title, or the name."""
        return str(self.card.get("title") or self.name)

    @property
    def grey(self) -> bool:
        """Whether the model reads grey pictures (digits)."""
        preprocessing = self.card.get("preprocessing") or {}
        return preprocessing.get("mode") == "L"

    @property
    def languages(self) -> tuple[str, ...]:
        """Language codes of the card."""
        return tuple(self.card.get("languages") or ())


class GatewayClient:
    """Calls the gateway with a visitor's key. Holds no key of its own beyond that."""

    def __init__(self, http: httpx.Client, key: str | None = None) -> None:
        self._http = http
        self._key = key

    # --- health and models

    def ready(self) -> bool:
        """Whether the gateway says it is ready. Raises :class:`GatewayFailure` if it does not answer."""
        return self._send("GET", "/healthz/ready", authenticated=False)[0].status_code == httpx.codes.OK

    def models(self) -> list[Model]:
        """The models that the key may use."""
        body = self._json(self._call("GET", "/v1/models")[0])
        return [_model(item) for item in _items(body, "data")]

    # --- tasks

    def classify_image(self, model: str, data: bytes, media_type: str) -> Answer[list[Score]]:
        """The five best labels of a picture, best first; ``data`` is the file's bytes."""
        return self._task(model, None, _scores, content=data, headers={"Content-Type": media_type})

    def classify_text(self, model: str, text: str, *, top_k: int | None = None) -> Answer[list[Score]]:
        """Labels of a text, best first."""
        body = {"inputs": text, "parameters": {} if top_k is None else {"top_k": top_k}}
        return self._task(model, None, _nested_scores, json=body)

    def entities(self, model: str, text: str) -> Answer[list[Entity]]:
        """Named entities in reading order, words of one name joined."""
        body = {"inputs": text, "parameters": {"aggregation_strategy": "simple"}}
        return self._task(model, None, _entities, json=body)

    def answer(self, model: str, question: str, context: str, *, top_k: int = 1) -> Answer[list[Span]]:
        """The best ``top_k`` answers found in ``context``, best first."""
        body = {"inputs": {"question": question, "context": context}, "parameters": {"top_k": top_k}}
        return self._task(model, None, _spans, json=body)

    def translate(self, model: str, text: str) -> Answer[str]:
        """``text`` in the model's target language."""
        return self._task(model, None, _translation, json={"inputs": text})

    def embed(self, model: str, texts: Sequence[str]) -> Answer[npt.NDArray[np.float32]]:
        """Embeddings of unit length, float32 ``[texts, dimensions]``."""
        body = {"inputs": list(texts), "normalize": True}
        return self._task(model, "feature-extraction", _matrix, json=body)

    def zero_shot(
        self, model: str, text: str, labels: Sequence[str], *, multi_label: bool = False
    ) -> Answer[list[Score]]:
        """Scores of labels that the model was never trained on, best first."""
        body = {"inputs": text, "parameters": {"candidate_labels": list(labels), "multi_label": multi_label}}
        return self._task(model, "zero-shot-classification", _scores, json=body)

    # --- usage

    def usage(self, group_by: str, *, since: str | None = None) -> list[dict[str, Any]]:
        """Usage of the key's project, one row a group. Needs the scope ``usage:read``."""
        query = {"group_by": group_by, "format": "json"} | ({"since": since} if since else {})
        return _rows(self._json(self._call("GET", "/admin/usage", params=query)[0]))

    def usage_records(self, *, limit: int = 100, model: str | None = None) -> list[dict[str, Any]]:
        """The latest usage records of the key's project, newest first."""
        query = {"limit": str(limit)} | ({"model": model} if model else {})
        return _rows(self._json(self._call("GET", "/admin/usage/records", params=query)[0]))

    # --- the wire

    def _task(self, model: str, task: str | None, read: Callable[[Any], T], **arguments: Any) -> Answer[T]:
        response, metering = self._call("POST", task_path(model, task), **arguments)
        body = self._json(response)
        try:
            return Answer(read(body), metering)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GatewayFailure("error", f"The answer of {model} has a shape that this page does not know.") from error

    def _call(self, method: str, path: str, **arguments: Any) -> tuple[httpx.Response, Metering]:
        response, elapsed_ms = self._send(method, path, **arguments)
        if response.is_success:
            return response, read_metering(response.headers, elapsed_ms)
        raise failure(response)

    def _send(
        self, method: str, path: str, *, authenticated: bool = True, **arguments: Any
    ) -> tuple[httpx.Response, float]:
        headers = dict(arguments.pop("headers", {}))
        if authenticated:
            if not self._key:
                raise GatewayFailure("key", "Enter an API key in the sidebar first.")
            if not re.fullmatch(r"[!-~]+", self._key):  # the HTTP library would repeat it in its complaint
                raise GatewayFailure("key", "That is not an API key: it has characters that no key has.")
            headers["Authorization"] = f"Bearer {self._key}"
        started = time.perf_counter()
        try:
            response = self._http.request(method, path, headers=headers, **arguments)
        except httpx.TimeoutException as error:
            raise GatewayFailure("timeout", "The gateway did not answer in time. Try again.") from error
        except httpx.TransportError as error:
            raise GatewayFailure(
                "unreachable", f"The gateway at {self._http.base_url} cannot be reached. Is it running?"
            ) from error
        return response, (time.perf_counter() - started) * 1e3

    @staticmethod
    def _json(response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise GatewayFailure("error", "The gateway's answer is not JSON. Is the address right?") from error


def task_path(model: str, task: str | None = None) -> str:
    """The path of a task call; ``task`` None means the model's own."""
    path = f"/hf/models/{quote(model, safe='')}"
    return path if task is None else f"{path}/pipeline/{task}"


# --- headers


def parse_server_timing(value: str) -> dict[str, float]:
    """Milliseconds by name from a ``Server-Timing`` header (W3C Server Timing); malformed parts are skipped."""
    durations: dict[str, float] = {}
    for part in value.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        for parameter in parameters:
            match = re.fullmatch(r'dur\s*=\s*"?([0-9.eE+-]+)"?', parameter)
            number = _number(match.group(1)) if match else None
            if name and number is not None and number >= 0:
                durations[name] = number
    return durations


def read_metering(headers: Mapping[str, str], elapsed_ms: float) -> Metering:
    """What the response headers say of latency, units and cost; ``headers`` looked up in any case."""
    return Metering(
        elapsed_ms=elapsed_ms,
        stages=parse_server_timing(headers.get("server-timing", "")),
        tokens=int(_number(headers.get("x-tidegate-tokens")) or 0),
        pixels=int(_number(headers.get("x-tidegate-pixels")) or 0),
        compute_ms=_number(headers.get("x-tidegate-compute-ms")),
        cost_usd=_number(headers.get("x-tidegate-cost-usd")),
        usage_id=headers.get("x-tidegate-usage-id"),
        request_id=headers.get("x-request-id"),
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is None or math.isfinite(value) else None


# --- failures

_PLAIN: dict[int, tuple[FailureKind, str]] = {
    401: ("key", "The gateway does not accept this key. Check it in the sidebar: it may be expired or revoked."),
    402: ("budget", "The budget of this key is spent."),
    403: ("forbidden", "This key has no right to do that."),
    404: ("missing", "The gateway does not serve this model."),
    413: ("input", "That is too large."),
    415: ("input", "That kind of file is not served."),
    502: ("down", "The model server broke off. Try again."),
    504: ("timeout", "The model did not answer in time. Try again."),
}


def failure(response: httpx.Response) -> GatewayFailure:
    """An error response as one friendly line."""
    status = response.status_code
    wait = _retry_after(response.headers.get("retry-after"))
    said = _message(response)
    again = f" Try again in {wait} s." if wait else " Try again in a moment."
    if status == httpx.codes.TOO_MANY_REQUESTS:
        kind, text = "busy", f"Too many requests for this key.{again}"
    elif status == httpx.codes.SERVICE_UNAVAILABLE:
        kind, text = "down", f"The model server is not available right now.{again}"
    elif status in _PLAIN:
        kind, text = _PLAIN[status]
        text += f" ({said})" if said and status != httpx.codes.UNAUTHORIZED else ""
    elif status < httpx.codes.INTERNAL_SERVER_ERROR:
        kind, text = "input", said or f"The gateway refused the request (HTTP {status})."
    else:
        kind, text = "error", f"The gateway failed (HTTP {status})."
    return GatewayFailure(
        kind,  # type: ignore[arg-type]
        text,
        status=status,
        retry_after_s=wait,
        request_id=response.headers.get("x-request-id"),
    )


def _retry_after(value: str | None) -> int | None:
    return int(value) if value and value.isascii() and value.isdigit() else None


def _message(response: httpx.Response) -> str:
    """The error text of any of the gateway's dialects, on one line, at most 300 characters."""
    try:
        body = response.json()
    except ValueError:
        return ""
    said: Any = body
    if isinstance(body, dict):
        said = body.get("error") or body.get("detail") or body.get("message") or body.get("title")
    if isinstance(said, dict):
        said = said.get("message")
    if isinstance(said, list):
        said = "; ".join(str(part) for part in said)
    return " ".join(str(said).split())[:300] if said else ""


# --- bodies


def _items(body: Any, name: str) -> list[Any]:
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise GatewayFailure("error", "The gateway's answer has a shape that this page does not know.")
    return found


def _rows(body: Any) -> list[dict[str, Any]]:
    if isinstance(body, dict):
        body = next((value for value in body.values() if isinstance(value, list)), None)
    if not isinstance(body, list) or not all(isinstance(row, dict) for row in body):
        raise GatewayFailure("error", "The gateway's answer has a shape that this page does not know.")
    return body


def _model(item: Any) -> Model:
    card = item.get("tidegate") or {}
    return Model(name=str(item["id"]), ready=bool(card.get("ready")), tasks=tuple(card.get("tasks") or ()), card=card)


def _scores(body: Any) -> list[Score]:
    return [Score(str(item["label"]), float(item["score"])) for item in body]


def _nested_scores(body: Any) -> list[Score]:
    return _scores(body[0])


def _entities(body: Any) -> list[Entity]:
    return [
        Entity(
            str(item.get("entity_group") or item.get("entity")), str(item["word"]), float(item["score"]),
            int(item["start"]), int(item["end"]),
        )
        for item in body
    ]  # fmt: skip


def _spans(body: Any) -> list[Span]:
    found = body if isinstance(body, list) else [body]
    return [Span(str(item["answer"]), float(item["score"]), int(item["start"]), int(item["end"])) for item in found]


def _translation(body: Any) -> str:
    return str(body[0]["translation_text"])


def _matrix(body: Any) -> npt.NDArray[np.float32]:
    matrix = np.asarray(body, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected [texts, dimensions], got {matrix.ndim} dimensions")
    return matrix
