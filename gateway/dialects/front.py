"""The HTTP front door: an ASGI application that finds the dialect, authenticates before it reads the
body, calls the handler, and answers every error in the dialect's own body.

There is no middleware chain: this is the hot path.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qs

import msgspec
import structlog
import uuid_utils

from gateway.access.credentials import find_credential
from gateway.access.idempotency import Answer
from gateway.dialects.body import BodyMemory, read_body, this_task
from gateway.dialects.headers import acceptable_request_id, is_acceptable
from gateway.dialects.http import Dialect, Request, Response, Route
from gateway.dialects.routing import Router
from gateway.errors import ClientClosed, GatewayError, Internal, Malformed, NotAcceptable
from gateway.pipeline import Pipeline
from gateway.types import WHOLE_ANSWER, Call

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SINGLE = frozenset(
    {"authorization", "x-api-key", "content-length", "content-type", "content-encoding", "host", "idempotency-key"}
)
_DISCONNECT_WATCH_S = 0.05


class Plain:
    """How paths that belong to no dialect answer: ``{"error": …}``."""

    name = "plain"
    error_schema: ClassVar[dict[str, Any]] = {"type": "object", "required": ["error", "code", "request_id"]}
    routes: tuple[Route, ...] = ()

    def encode_error(self, error: GatewayError, call: Call) -> Response:
        """Status and ``{"error", "code", "request_id"}``."""
        return Response(
            error.status,
            msgspec.json.encode({"error": error.message, "code": error.code, "request_id": call.request_id}),
        )


class Front:
    """ASGI callable for ``http`` scopes."""

    def __init__(self, pipeline: Pipeline, dialects: Iterable[Dialect]) -> None:
        self._pipeline = pipeline
        self._router = Router(dialects)
        self._plain = Plain()
        self._bodies = BodyMemory(pipeline.settings.max_buffered_bytes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        usage_id = str(uuid_utils.uuid7())
        call = Call(usage_id, usage_id, "plain", "unknown", client_address=_address(scope))
        try:
            response = await self._answer(scope, receive, call)
            if isinstance(response.body, bytes):
                call.bytes_out = len(response.body)
                await self._pipeline.close(call)
        except ClientClosed as error:
            await self._pipeline.close(call, error)
            self._finished(call, error.status)
            return
        except GatewayError as error:
            response = await self._failed(scope, error, call)
        except asyncio.CancelledError as error:
            await self._pipeline.close(call, error)
            self._finished(call, ClientClosed.status)
            raise
        except Exception as error:
            log.exception("request.failed", request_id=call.request_id, operation=call.operation)
            response = await self._failed(scope, error, call)
        if isinstance(response.body, bytes):
            await self._send(scope, send, call, response)
            self._finished(call, response.status)
        else:
            await self._stream(scope, receive, send, call, response)

    def refuse(
        self, raw_path: bytes, headers: list[tuple[bytes, bytes]], client_address: str, error: GatewayError
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body of the answer to a request that the transport could not parse: never a call, but counted.

        ``raw_path`` and ``headers`` are what had been read until then.
        """
        usage_id = str(uuid_utils.uuid7())
        call = Call(usage_id, usage_id, "plain", "unknown", client_address=client_address)
        wanted = [value.decode("latin-1") for name, value in headers if name == b"x-request-id"]
        call.request_id = (acceptable_request_id(wanted[0]) if len(wanted) == 1 else None) or usage_id
        dialect = self._dialect(raw_path)
        call.dialect = dialect.name
        response = self._encode_error(dialect, error, call)
        self._finished(call, error.status)
        return self._headers(call, response), response.body if isinstance(response.body, bytes) else b""

    def _dialect(self, raw_path: bytes) -> Dialect:
        """Whose error body a request to ``raw_path`` gets."""
        return self._router.dialect_of(raw_path) or self._plain

    async def _failed(self, scope: Any, error: Exception, call: Call) -> Response:
        """Close ``call`` and say what went wrong; that it could not be recorded, if even that went wrong."""
        try:
            await self._pipeline.close(call, error)
        except GatewayError as unrecorded:
            error = unrecorded
        public = error if isinstance(error, GatewayError) else Internal("internal error")
        return self._encode_error(self._dialect(scope["raw_path"]), public, call)

    async def _stream(self, scope: Any, receive: Any, send: Any, call: Call, response: Response) -> None:
        """Send a response whose parts are still being made; its call is closed when the last has gone.

        The first part is awaited before the status goes, so that an error before it gets its own status.
        An error after it cuts the stream off: it is never completed as if it were whole.
        """
        parts: AsyncIterator[bytes] = response.body  # type: ignore[assignment]
        begun = False

        async def send_parts() -> None:
            nonlocal begun
            part = await _next(parts)
            await send(
                {"type": "http.response.start", "status": response.status, "headers": self._headers(call, response)}
            )
            begun = True
            while part is not None:
                call.bytes_out += len(part)
                await send({"type": "http.response.body", "body": part, "more_body": True})
                part = await _next(parts)

        try:
            await _unless_client_goes(send_parts(), receive)
            await self._pipeline.close(call)
            await send({"type": "http.response.body", "body": b""})
        except ClientClosed as error:
            await self._pipeline.close(call, error)
            self._finished(call, error.status)
            return
        except asyncio.CancelledError as error:
            await self._pipeline.close(call, error)
            self._finished(call, ClientClosed.status)
            raise
        except Exception as error:
            if not isinstance(error, GatewayError):
                log.exception("request.failed", request_id=call.request_id, operation=call.operation)
            failure = await self._failed(scope, error, call)
            if not begun:
                await self._send(scope, send, call, failure)
            # A response that has begun is left incomplete, which makes the server cut the connection.
            self._finished(call, failure.status)
            return
        finally:
            await _close(parts)
        self._finished(call, response.status)

    async def _answer(self, scope: Any, receive: Any, call: Call) -> Response:
        headers = _headers(scope["headers"])
        call.request_id = acceptable_request_id(headers.get("x-request-id")) or call.usage_id
        dialect, route, params = self._router.match(scope["method"], scope["raw_path"])
        call.dialect, call.operation = dialect.name, route.operation
        accept = headers.get("accept")
        produced = route.response_media_types
        if accept and accept != "*/*" and produced and not is_acceptable(accept, produced):
            raise NotAcceptable("none of the media types in Accept can be produced")
        settings = self._pipeline.settings
        self._pipeline.set_timeout(call, settings.default_timeout_s)
        call.trace_parent, call.trace_state = headers.get("traceparent"), headers.get("tracestate")
        call.idempotency_key = headers.get("idempotency-key")
        query = (
            parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True) if scope["query_string"] else {}
        )
        if route.scope is not None:
            call.credential = find_credential(scope["headers"], query)
            await self._pipeline.authenticate(call, route.scope)
        body, share = b"", self._bodies.share()
        try:
            if scope["method"] not in {"GET", "HEAD"}:
                body = await read_body(receive, headers, settings.max_body_bytes, settings.body_timeout_s, share)
            call.bytes_in = len(body)
            request = Request(scope["method"], scope["path"], params, query, headers, body)
            if call.idempotency_key is not None and route.takes_idempotency_key:
                return await self._once(scope, receive, route, request, call)
            return await _unless_client_goes(route.handler(request, call), receive)
        finally:
            share.release()

    async def _once(self, scope: Any, receive: Any, route: Route, request: Request, call: Call) -> Response:
        """The answer to a request with an idempotency key: the handler's, or the one that it gave before."""
        if route.streams:
            raise Malformed("Idempotency-Key: a stream cannot be answered again", param="Idempotency-Key")
        headers = {name: value for name, value in request.headers.items() if name != "accept-encoding"}
        request.headers = headers  # the answer is kept, and given again, uncompressed

        async def work() -> Answer:
            response = await _unless_client_goes(route.handler(request, call), receive)
            if not isinstance(response.body, bytes):
                raise TypeError(f"{route.operation} answers with a stream")
            return Answer(response.status, response.body, response.headers, response.media_type)

        framing = headers.get("inference-header-content-length", "")
        kind = f"{request.method} {request.content_type} {framing}".encode()
        answer = await self._pipeline.once(call, (kind, scope["raw_path"], scope["query_string"], request.body), work)
        return Response(answer.status, answer.body, answer.headers, answer.media_type)

    def _encode_error(self, dialect: Dialect, error: GatewayError, call: Call) -> Response:
        response = dialect.encode_error(error, call)
        response.headers.update(error.headers)
        if error.retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        if error.status == 401:
            response.headers.setdefault("WWW-Authenticate", 'Bearer realm="tidegate"')
        return response

    async def _send(self, scope: Any, send: Any, call: Call, response: Response) -> None:
        body = response.body if isinstance(response.body, bytes) else b""
        headers = self._headers(call, response)
        at_once = scope["extensions"].get(WHOLE_ANSWER) if "extensions" in scope else None
        ends = "Connection" in response.headers  # which only ``send`` understands
        if at_once is not None and not ends and at_once["send"](response.status, headers, body):
            return
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _headers(self, call: Call, response: Response) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", call.request_id.encode("latin-1"))]
        if response.media_type:
            headers.append((b"content-type", response.media_type.encode("latin-1")))
        for extra in (response.headers, call.headers):
            for name, value in extra.items():
                headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
        if call.model and response.status == 200:
            headers += _metered(call)
        headers.append((b"server-timing", _server_timing(call)))
        return headers

    def _finished(self, call: Call, code: int) -> None:
        self._pipeline.metrics.finished(call, code, (time.monotonic_ns() - call.received_ns) / 1e9)


async def _next(parts: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await parts.__anext__()
    except StopAsyncIteration:
        return None


async def _close(parts: AsyncIterator[bytes]) -> None:
    """End a generator of parts that was left half-way, and with it the call to Triton that feeds it."""
    if isinstance(parts, AsyncGenerator):
        await parts.aclose()


async def _unless_client_goes(handler: Awaitable[T], receive: Any) -> T:
    """What the handler returns; if the client disconnects meanwhile, the handler is cancelled.

    Watching costs a task, so it begins only when a request has been in flight for a while.
    """
    watch = _Watch(this_task(), receive)
    try:
        return await handler
    except asyncio.CancelledError:
        if watch.gone:
            raise ClientClosed("the client went away") from None
        raise
    finally:
        watch.end()


class _Watch:
    """Cancels ``task`` when its client disconnects."""

    __slots__ = ("_receive", "_task", "_timer", "_watcher", "gone")

    def __init__(self, task: asyncio.Task[Any], receive: Any) -> None:
        self._task = task
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.gone = False
        self._timer = task.get_loop().call_later(_DISCONNECT_WATCH_S, self._begin)

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = self._task.get_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()


def _address(scope: Any) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name, value = name_bytes.decode("latin-1"), value_bytes.decode("latin-1")
        if name in headers:
            if name in _SINGLE:
                raise Malformed(f"the header {name} is given twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _metered(call: Call) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-tidegate-usage-id", call.usage_id.encode()),
        (b"x-tidegate-tokens", str(call.units.tokens).encode()),
        (b"x-tidegate-pixels", str(call.units.pixels).encode()),
        (b"x-tidegate-compute-ms", f"{call.estimated_compute_ns / 1e6:.3f}".encode()),
        (b"x-tidegate-cost-usd", f"{call.estimated_cost_usd:.12f}".encode()),
    ]


def _server_timing(call: Call) -> bytes:
    total = time.monotonic_ns() - call.received_ns
    parts = [f"{stage};dur={nanoseconds / 1e6:.3f}" for stage, nanoseconds in call.stages.items()]
    parts.append(f"total;dur={total / 1e6:.3f}")
    return ", ".join(parts).encode()
