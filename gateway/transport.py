"""The HTTP/1.1 transport: uvicorn's httptools protocol with what it leaves open, closed. Slow and endless
headers, slow bodies and floods of connections are ended here, before the application sees them.
"""

from __future__ import annotations

import asyncio
import http
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass(slots=True, frozen=True)
class TransportLimits:
    """What one connection may cost."""

    max_connections: int
    max_header_bytes: int = 32 * 1024
    max_headers: int = 100
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Made by :func:`protocol_class`, which sets ``limits``."""

    limits: TransportLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._status = 400
        self._header_bytes = 0
        self._in_headers = True
        self._waiting_since: float | None = time.monotonic()
        """Since when the rest of a message is outstanding; None between messages."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or answer 503 and close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too many connections")

    def data_received(self, data: bytes) -> None:
        """Parse, counting what belongs to headers."""
        if self._in_headers:
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            self._header_bytes += len(data)
        super().data_received(data)
        # Counted before parsing, a body that came with its headers would count as headers.
        if self._in_headers and self._header_bytes > self.limits.max_header_bytes and not self.transport.is_closing():
            self._refuse(431, "the request's headers are too large")

    def on_message_begin(self) -> None:
        """A message begins; a pipelined one does so while data of the one before is being parsed."""
        super().on_message_begin()
        self._in_headers = True
        self._waiting_since = self._waiting_since or time.monotonic()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; raising stops the parser, and :meth:`send_400_response` answers."""
        super().on_header(name, value)
        if len(self.headers) > self.limits.max_headers or len(name) + len(value) > self.limits.max_header_bytes:
            self._status = 431
            raise ValueError("too many headers, or one that is too large")

    def on_headers_complete(self) -> None:
        """Headers are whole; from here on the body's time counts."""
        self._in_headers = False
        self._header_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The message is whole: nothing is outstanding until the next."""
        self._in_headers = True
        self._waiting_since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refused: 400, or 431 for headers that are too large."""
        self._refuse(self._status, msg if self._status == 400 else "the request's headers are too large")

    def end_if_late(self, now: float) -> None:
        """Close the connection if its client takes too long to finish a message."""
        if self._waiting_since is None or self.transport is None or self.transport.is_closing():
            return
        waited = now - self._waiting_since
        if self._in_headers and waited > self.limits.header_timeout_s:
            self._refuse(408, "the request's headers did not arrive in time")
        elif not self._in_headers and waited > self.limits.header_timeout_s + self.limits.body_timeout_s:
            self.transport.close()  # the application has answered by now, or is answering

    def _refuse(self, status: int, message: str) -> None:
        body = b'{"error":"' + message.encode("ascii", "replace") + b'"}'
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n%s"
            % (status, http.HTTPStatus(status).phrase.encode(), len(body), retry, body)
        )
        self.transport.close()


def protocol_class(limits: TransportLimits) -> type[GuardedProtocol]:
    """The protocol with ``limits``; uvicorn makes one object of it a connection."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


async def end_late_connections(connections: Callable[[], set[Any]], interval_s: float = 0.5) -> None:
    """Sweep ``connections()`` forever: one timer for all of them costs a request nothing."""
    while True:
        await asyncio.sleep(interval_s)
        now = time.monotonic()
        for connection in list(connections()):
            if isinstance(connection, GuardedProtocol):
                connection.end_if_late(now)
