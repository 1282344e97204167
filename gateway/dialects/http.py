"""The vocabulary of the HTTP dialects: requests, responses, routes. The front door that speaks ASGI
is :mod:`gateway.dialects.front`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from gateway.errors import GatewayError
from gateway.types import Call, Scope


class Request(msgspec.Struct, eq=False):
    """An HTTP request whose body has been read within the limits and decompressed."""

    method: str
    path: str
    params: dict[str, str]
    """What the route's ``{names}`` matched, percent-decoded."""
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""

    @property
    def content_type(self) -> str | None:
        """The media type without parameters, in lower case; None if the client sent none."""
        value = self.headers.get("content-type")
        return value.partition(";")[0].strip().lower() if value else None


class Response(msgspec.Struct, eq=False):
    """An answer: a whole body, or a stream of parts."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    headers: dict[str, str] = {}
    media_type: str | None = "application/json"


Handler = Callable[[Request, Call], Awaitable[Response]]


@dataclass(slots=True, frozen=True)
class Route:
    """One operation of a dialect. ``path`` segments in braces match one segment each."""

    method: str
    path: str
    operation: str
    """A fixed label for metrics and records."""
    handler: Handler
    scope: Scope | None = "infer"
    """What the key must have; None: public, no key is asked for."""
    summary: str = ""
    tags: tuple[str, ...] = ()
    request_schema: dict[str, Any] | None = None
    response_schema: dict[str, Any] | None = None
    request_media_types: tuple[str, ...] = ("application/json",)
    request_required: bool = True
    """Whether there must be a body where ``request_schema`` describes one."""
    response_media_types: tuple[str, ...] = ("application/json",)
    """What a success is sent as; empty: it has no body. ``response_schema`` is that of the JSON."""
    failures: Mapping[int, dict[str, Any] | None] = field(default_factory=dict)
    """Statuses that are answered with another body than the dialect's errors: its schema, None for no body."""
    example: Any = None
    """A body that works with the starter models."""
    path_example: Mapping[str, str] = field(default_factory=dict)
    """Path parameters that work with the starter models."""
    inference: bool = True
    """False: not an inference, although a POST with the scope for it."""

    @property
    def takes_idempotency_key(self) -> bool:
        """Whether an Idempotency-Key means something here; elsewhere it is ignored."""
        return self.method == "POST" and self.scope == "infer" and self.inference

    @property
    def streams(self) -> bool:
        """Whether the answer comes in parts: it is not kept, and cannot be given again."""
        return "text/event-stream" in self.response_media_types


class Dialect(Protocol):
    """A wire protocol: its routes, and how it tells an error."""

    name: str

    @property
    def error_schema(self) -> Mapping[str, Any]:
        """JSON schema of :meth:`encode_error`'s bodies."""
        ...

    @property
    def routes(self) -> Sequence[Route]:
        """Every operation of the dialect."""
        ...

    def encode_error(self, error: GatewayError, call: Call) -> Response:
        """``error`` in the dialect's own body; the front adds the common headers."""
        ...
