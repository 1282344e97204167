"""In front of every admin route, known or not: who calls, and whether the key may be here at all.

It stands before the routing, so that no method and no path answers a caller without the right.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import structlog
import uuid_utils

from gateway.access.audit import Actor
from gateway.access.authenticator import Authenticator
from gateway.access.credentials import find_credential
from gateway.access.key import OPERATOR
from gateway.errors import (
    ClientClosed,
    ClientTimeout,
    Forbidden,
    GatewayError,
    Internal,
    Invalid,
    Malformed,
    NotFound,
    RateLimited,
    TooLarge,
)
from gateway.timeouts import timeout
from gateway.types import Call, Principal

log = structlog.get_logger(__name__)

AsgiScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[AsgiScope, Receive, Send], Awaitable[None]]

PREFIX = "/admin"
MAX_BODY = 64 * 1024
BODY_TIMEOUT_S = 10.0
_QUOTA = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_REDUCED = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"


_SPENT = re.compile(r'"(\w+)";r=0;')
"""Names in ``RateLimit`` of what is used up."""


class Guard:
    """ASGI callable: authenticates, checks the scope of the path, limits the body, answers errors."""

    def __init__(self, app: AsgiApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        call = _call(scope)
        started = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", call.request_id.encode("ascii")),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        try:
            principal = await self._admit(scope, call)
            scope.setdefault("state", {}).update(
                principal=principal, actor=Actor(principal.key_id, call.request_id, call.client_address)
            )
            await self._app(scope, _replay(await _read(receive), receive), send_with_id)
        except ClientClosed:
            return
        except GatewayError as error:
            if started:
                raise
            await _send_problem(send_with_id, error, call.request_id)
        except Exception:
            log.exception("admin.failed", request_id=call.request_id)
            if started:  # answered by the application's own handler
                return
            await _send_problem(send_with_id, Internal("Internal error."), call.request_id)

    async def _admit(self, scope: AsgiScope, call: Call) -> Principal:
        try:
            query = parse_qs(scope.get("query_string", b"").decode("ascii"), keep_blank_values=True, max_num_fields=64)
        except ValueError:
            raise Malformed("The query string cannot be read.") from None
        call.credential = find_credential(scope["headers"], query)
        principal = await self._authenticator.authenticate(call)
        path: str = scope["path"]
        if not _scopes_for(path) & principal.scopes:
            self._authenticator.note(call.client_address, f"forbidden {principal.key_id}")
            raise Forbidden("The key lacks the scope for this.")
        if path.encode("utf-8", "surrogateescape") != scope.get("raw_path", path.encode()).partition(b"?")[0]:
            raise NotFound("There is no such route.")  # an encoded path names none of ours
        for name, values in query.items():
            if any("\0" in value for value in values):
                raise Invalid("The query must not hold NUL.", param=name)  # PostgreSQL takes none in a text
        return principal


def problem(error: GatewayError, request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Write an error as RFC 9457 has it: status, body, headers."""
    body: dict[str, Any] = {
        "type": {429: _QUOTA, 503: _REDUCED}.get(error.status, "about:blank"),
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "instance": f"/requests/{request_id}",
        "code": error.code,
        "request_id": request_id,
    }
    if error.param is not None:
        body["param"] = error.param
    headers = dict(error.headers)
    if error.status == RateLimited.status:
        body["violated-policies"] = _SPENT.findall(headers.get("RateLimit", ""))
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return error.status, body, headers


def reach(principal: Principal) -> str | None:
    """Return the organisation that an administrator's key reaches; None: every one."""
    return None if principal.organisation == OPERATOR else principal.organisation


def refuse(error: GatewayError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer to a request that the transport could not parse."""
    request_id = str(uuid_utils.uuid7())
    _, head, content = _encode(error, request_id)
    return [*head, (b"x-request-id", request_id.encode()), (b"cache-control", b"no-store")], content


async def _send_problem(send: Send, error: GatewayError, request_id: str) -> None:
    status, head, content = _encode(error, request_id)
    head.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": content})


def _encode(error: GatewayError, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    status, body, headers = problem(error, request_id)
    head = [(b"content-type", b"application/problem+json")]
    head += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return status, head, json.dumps(body).encode()


def _scopes_for(path: str) -> frozenset[str]:
    """Any one of these lets a key reach ``path``."""
    part = path.removeprefix(PREFIX).strip("/").partition("/")[0]
    if part == "usage":
        return frozenset({"usage:read", "keys:admin"})
    if part == "audit":
        return frozenset({"audit:read"})
    return frozenset({"keys:admin"})


def _call(scope: AsgiScope) -> Call:
    identity = str(uuid_utils.uuid7())
    client = scope.get("client")
    return Call(identity, identity, "admin", "admin", client_address=client[0] if client else "")


async def _read(receive: Receive) -> bytes:
    """Read the body. Raises ``TooLarge``, ``ClientTimeout``, ``ClientClosed``."""
    body = bytearray()
    try:
        async with timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientClosed("The client went away.")
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise TooLarge(f"The body may have {MAX_BODY} bytes.")
                if not message.get("more_body", False):
                    return bytes(body)
    except asyncio.TimeoutError:
        raise ClientTimeout("The body did not arrive in time.") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, then what really comes."""
    sent = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
