"""The HTTP/1.1 transport: uvicorn's httptools protocol with what it leaves open, closed. Slow and endless
headers, slow bodies, clients that do not read and floods of connections are ended here, before the
application sees them; what cannot be parsed is refused here, in the error body of the dialect that was called.
"""

from __future__ import annotations

import asyncio
import http
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.errors import (
    ClientTimeout,
    GatewayError,
    HeadersTooLarge,
    Malformed,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
)
from gateway.types import WHOLE_ANSWER

Refusal = tuple[list[tuple[bytes, bytes]], bytes]
"""Headers and body of an error's answer."""
Refuse = Callable[[bytes, list[tuple[bytes, bytes]], str, GatewayError], Refusal]
"""How a request that cannot be parsed is answered: its path and headers so far, the client's address, why."""

LINGER_S = 5.0
MIN_DRAIN_BYTES = 16 * 1024
MAX_LENGTH_DIGITS = 18
"""Of a Content-Length: what a signed 64-bit integer holds at any rate."""
_METHODS = "DELETE, GET, HEAD, PATCH, POST, PUT"


def refuse_plainly(_path: bytes, _headers: list[tuple[bytes, bytes]], _client: str, error: GatewayError) -> Refusal:
    """``{"error": "<string>"}``, for listeners without dialects."""
    headers = [(b"content-type", b"application/json")]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    return headers, b'{"error":"' + error.message.encode("ascii", "replace") + b'"}'


@dataclass(slots=True, frozen=True)
class TransportLimits:
    """What one connection may cost."""

    max_connections: int
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    max_chunks: int = 65_536
    max_framing_bytes: int = 2**20
    """Of one body: chunk sizes, chunk extensions, trailers."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Made by :func:`protocol_class`, which sets ``limits`` and ``refuse``."""

    limits: TransportLimits
    refuse: Refuse

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self.headers = []
        self._fault: GatewayError | None = None
        """Why a callback stopped the parser."""
        self._refused: GatewayError | None = None
        """Why nothing is read from this connection any more."""
        self._header_bytes = 0
        self._framing_bytes = 0
        self._chunks = 0
        self._has_host = False
        self._in_headers = True
        self._body_of_upgrade = False
        self._muted = False
        self._waiting_since: float | None = time.monotonic()
        """Since when the rest of a message is outstanding; None between messages."""
        self._ended_at: float | None = None
        self._active: RequestResponseCycle | None = None
        """The request that is being answered, or was last."""
        self._outlet = _Outlet(self)
        self._drained = (0, time.monotonic())
        """Bytes that the client had taken when it was last seen to take some, and when."""

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or answer 503 and close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refused = Unavailable("too many connections", retry_after_s=1.0)
            self._write_refusal(self._refused)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, which is not the newest if others are pipelined behind it."""
        if self._active is not None and not self._active.response_complete:
            self._active.disconnected = True
            self._active.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        # What is left of the connection is a cycle, and waits for the collector: not with TLS's buffers in hand.
        self.transport = self.flow._transport = _GONE  # noqa: SLF001

    def data_received(self, data: bytes) -> None:
        """Parse, counting what belongs to headers and to the framing of bodies."""
        if self._refused is not None or self._ended_at is not None:
            return  # read and dropped: closing with unread bytes would take the answer away from the client
        self._unset_keepalive_if_required()
        if self._in_headers:
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            self._header_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        self._feed(data)
        # Counted before parsing, a body that came with its headers would count as headers.
        if self._in_headers and self._header_bytes > self.limits.max_header_bytes:
            self._refuse(HeadersTooLarge("the request's headers are too large"))
        elif not self._in_headers and self._framing_bytes > self.limits.max_framing_bytes:
            self._refuse(TooLarge("the body's chunk extensions are too large"))

    def end(self) -> None:
        """End the connection once everything is sent; what the client still sends meanwhile is dropped."""
        if self._ended_at is None and not self.transport.is_closing():
            self._ended_at = time.monotonic()
            late = isinstance(self._refused, ClientTimeout)
            if late or self._waiting_since is None or not self.transport.can_write_eof():
                self.transport.close()
            else:
                self.transport.write_eof()
                self.flow.resume_reading()

    def end_if_late(self, now: float) -> None:
        """Close the connection if its client takes too long to finish a message, or to read an answer."""
        self._abort_if_stuck(now)
        if self._ended_at is not None and now - self._ended_at > LINGER_S:
            self.transport.close()
        if self._waiting_since is None or self._refused is not None or self.transport.is_closing():
            return
        waited = now - self._waiting_since
        if self._in_headers and waited > self.limits.header_timeout_s:
            self._refuse(ClientTimeout("the request's headers did not arrive in time"))
        elif not self._in_headers and waited > self.limits.header_timeout_s + self.limits.body_timeout_s:
            self.transport.close()  # the application has answered by now, or is answering

    def _abort_if_stuck(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        drained = self._outlet.written - unsent
        if not unsent or drained - self._drained[0] >= MIN_DRAIN_BYTES:
            self._drained = (drained, now)
        elif now - self._drained[1] > self.limits.body_timeout_s:
            self.transport.abort()  # close() would wait for this client for ever

    # --- the parser and its callbacks

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._fault or Malformed("the request is not valid HTTP/1.1"))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1. The parser takes what follows an ``Upgrade`` for another protocol's, but it is
        the request's body: left alone it would be executed as the next request.
        """
        if self._body_of_upgrade:
            self._body_of_upgrade = False
            framing = [
                name + b": " + value
                for name, value in self.headers
                if name in {b"content-length", b"transfer-encoding"}
            ]
            self.parser = httptools.HttpRequestParser(self)
            self._muted = True
            self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *framing, b"", b""]))
            self._muted = False
        if rest:
            self._feed(rest)

    def on_message_begin(self) -> None:
        """A message begins; a pipelined one does so while data of the one before is being parsed."""
        if self._muted:
            return
        super().on_message_begin()
        self._in_headers = True
        self._has_host = False
        self._framing_bytes = self._chunks = 0
        self._waiting_since = self._waiting_since or time.monotonic()

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        if self._muted:
            return
        super().on_url(url)
        if len(self.url) > self.limits.max_header_bytes:
            self._stop(HeadersTooLarge("the request's target is too long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; raising stops the parser. Trailers come here too, and are dropped: what stands behind a body
        must not pass for a header (RFC 9110, 6.5).
        """
        if self._muted or not self._in_headers:
            return
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers or len(name) + len(value) > self.limits.max_header_bytes:
            self._stop(HeadersTooLarge("the request's headers are too many or too large"))
        length = len(name)
        if length == 4 and name.lower() == b"host":
            if self._has_host:
                self._stop(Malformed("the header host is given twice"))
            self._has_host = True
        elif length == 14 and len(value) > MAX_LENGTH_DIGITS and name.lower() == b"content-length":
            self._stop(Malformed("the Content-Length is out of range"))
        elif length == 17 and name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._stop(Malformed("the only transfer coding that is served is chunked"))

    def on_headers_complete(self) -> None:
        """Headers are whole; from here on the body's time counts."""
        if self._muted:
            return
        if self.parser.get_method() == b"CONNECT":
            self._stop(MethodNotAllowed("CONNECT is not allowed here", headers={"Allow": _METHODS}))
        version = self.parser.get_http_version()
        if version == "1.1":
            if not self._has_host:
                self._stop(Malformed("the Host header is missing"))
        elif version != "1.0" or _length_and_coding(self.headers)[1]:
            self._stop(Malformed("the request is not valid HTTP/1.1"))
        if self.parser.should_upgrade():
            length, coding = _length_and_coding(self.headers)
            self._body_of_upgrade = coding is not None or length not in {None, b"0"}
        self._in_headers = False
        self._header_bytes = 0
        super().on_headers_complete()
        self.cycle.transport = self._outlet  # type: ignore[assignment]
        self.scope["extensions"] = {WHOLE_ANSWER: {"send": partial(self._answer, self.cycle)}}

    def on_chunk_header(self) -> None:
        """One more chunk of the body."""
        self._chunks += 1
        if self._chunks > self.limits.max_chunks + 1:  # the last, empty one is none of the body's
            self._stop(TooLarge(f"the body has more than {self.limits.max_chunks} chunks"))

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The message is whole: nothing is outstanding until the next."""
        if self._muted or self._body_of_upgrade:
            return
        self._in_headers = True
        self._waiting_since = None
        super().on_message_complete()
        self.url, self.headers = b"", []

    def on_response_complete(self) -> None:
        """The answer was written: the next pipelined request's turn, or the refusal of one that came after."""
        if self._refused is not None and not self.pipeline and self._ended_at is None:
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self._write_refusal(self._refused)
                self.end()
            return
        if self._ended_at is None:
            super().on_response_complete()

    def _answer(
        self, cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Send a whole answer in one write: what two ``send`` of ASGI do, for a fraction of their cost.

        ``headers`` are lower-case and say neither ``connection`` nor how long the body is. False, and nothing is
        sent, while the client is too slow to take more: the answer has to be sent by way of ``send`` then.
        """
        if cycle.flow.write_paused or cycle.response_started:
            return False
        if cycle.disconnected:
            return True
        length = b"%d" % len(body)
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"%bcontent-length: %b\r\n%b%b" % (
            STATUS_LINE[status], length, b"".join(lines), b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        )  # fmt: skip
        ends = len(lines) + (3 if cycle.keep_alive else 4)
        if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
            raise RuntimeError("Invalid HTTP header value.")
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self._outlet.write(head if cycle.scope["method"] == "HEAD" else head + body)
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._outlet.close()
        cycle.on_response()
        return True

    def _should_upgrade(self) -> bool:
        return False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def _stop(self, fault: GatewayError) -> None:
        self._fault = fault
        raise ValueError(fault.message)

    # --- refusals

    def _refuse(self, error: GatewayError) -> None:
        """Answer ``error`` to the message that is being read, after the answers to those before it; then end."""
        if self._refused is not None or self._ended_at is not None or self.transport.is_closing():
            return
        self._refused = error
        cycle = None if self._in_headers else self.cycle
        if cycle is not None and self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # not begun: an earlier one is being answered
        elif cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
            else:
                self._write_refusal(error)
                self.end()
        elif self.cycle is None or self.cycle.response_complete:
            self._write_refusal(error)
            self.end()

    def _write_refusal(self, error: GatewayError) -> None:
        address = self.client[0] if self.client else ""
        headers, body = self.refuse(self.url.partition(b"?")[0], self.headers, address, error)
        length = str(len(body)).encode()
        lines = [name + b": " + value for name, value in (*headers, (b"content-length", length))]
        status = b"HTTP/1.1 %d %s" % (error.status, http.HTTPStatus(error.status).phrase.encode())
        self.transport.write(b"\r\n".join([status, *lines, b"connection: close", b"", body]))


class _Gone(asyncio.Transport):
    """Stands for the transport of a connection that is lost: closed, and takes no notice of anything."""

    def is_closing(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """It is."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it any more."""

    def pause_reading(self) -> None:
        """Nothing comes."""

    def resume_reading(self) -> None:
        """Nothing comes."""


_GONE = _Gone()


class _Outlet:
    """What a request's answer is written to: the transport, ended by the protocol's rules."""

    __slots__ = ("_protocol", "written")

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self.written = 0

    def write(self, data: bytes) -> None:
        """Send ``data``."""
        transport = self._protocol.transport
        if not transport.is_closing():
            self.written += len(data)
            transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        """End the connection."""
        self._protocol.end()


def _length_and_coding(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None]:
    length = coding = None
    for name, value in headers:
        if name == b"content-length":
            length = value.strip()
        elif name == b"transfer-encoding":
            coding = value
    return length, coding


def protocol_class(limits: TransportLimits, refuse: Refuse = refuse_plainly) -> type[GuardedProtocol]:
    """The protocol with ``limits``; uvicorn makes one object of it a connection."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits, "refuse": staticmethod(refuse)})


async def end_late_connections(connections: Callable[[], Iterable[Any]], interval_s: float = 0.5) -> None:
    """Sweep ``connections()`` forever: one timer for all of them costs a request nothing."""
    while True:
        await asyncio.sleep(interval_s)
        now = time.monotonic()
        for connection in list(connections()):
            if isinstance(connection, GuardedProtocol):
                connection.end_if_late(now)
