"""Routes of the gateway itself: health for orchestrators, the API's description for people and tools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.dialects import openapi
from gateway.dialects.http import Dialect, Request, Response, Route
from gateway.errors import GatewayError
from gateway.types import Call

Readiness = Callable[[], Awaitable[dict[str, str]]]
"""What is not ready, by part; empty when all is."""


_LIVE: dict[str, Any] = {"type": "object", "required": ["live"], "properties": {"live": {"const": True}}}
_READY: dict[str, Any] = {
    "type": "object",
    "required": ["ready", "missing"],
    "properties": {
        "ready": {"type": "boolean"},
        "missing": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


class Control:
    """``/healthz/*``, ``/docs``, ``/openapi.json``: no key is asked for."""

    name = "control"
    error_schema: Mapping[str, Any] = {
        "type": "object",
        "required": ["error", "request_id"],
        "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
    }

    def __init__(self, described: Sequence[Dialect], readiness: Readiness, version: str) -> None:
        self._described = described
        self._readiness = readiness
        self._version = version

    def encode_error(self, error: GatewayError, call: Call) -> Response:
        """``{"error", "request_id"}``."""
        return Response(error.status, msgspec.json.encode({"error": error.message, "request_id": call.request_id}))

    @property
    def routes(self) -> list[Route]:
        """Every control route."""
        tags = ("Gateway",)
        return [
            Route("GET", "/healthz/live", "live", self.live, None, "Whether the process runs", tags, None, _LIVE),
            Route(
                "GET", "/healthz/ready", "ready", self.ready, None, "Whether requests can be served", tags, None,
                _READY, failures={503: _READY},
            ),
            Route(
                "GET", "/openapi.json", "openapi", self.document, None, "This API as OpenAPI 3.1", tags, None,
                {"type": "object", "required": ["openapi", "info", "paths"]},
            ),
            Route(
                "GET", "/docs", "docs", self.docs, None, "This API as a page", tags,
                response_media_types=("text/html",),
            ),
        ]  # fmt: skip

    async def live(self, _request: Request, _call: Call) -> Response:
        """200 as long as the event loop answers."""
        return Response(200, b'{"live":true}')

    async def ready(self, _request: Request, _call: Call) -> Response:
        """200, or 503 with what is missing."""
        missing = await self._readiness()
        return Response(503 if missing else 200, msgspec.json.encode({"ready": not missing, "missing": missing}))

    async def document(self, _request: Request, _call: Call) -> Response:
        """``/openapi.json``."""
        return Response(200, msgspec.json.encode(openapi.document([*self._described, self], self._version)))

    async def docs(self, _request: Request, _call: Call) -> Response:
        """``/docs``."""
        specification = openapi.document([*self._described, self], self._version)
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(200, openapi.page(specification), headers, media_type="text/html; charset=utf-8")
