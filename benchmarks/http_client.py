"""A lean HTTP/1.1 client for load: prebuilt request bytes, httptools for the answers, no tasks.

A general client (httpx, aiohttp) costs more processor time per request than the server under test,
which shares the machine in many setups; then it is the client that is measured. This one spends
about 10 µs a request. Each connection carries one request at a time; callbacks, not coroutines,
continue the work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import httptools

from benchmarks.judgement import EXPIRED, FAILED, WITHDRAWN
from benchmarks.workloads import Payload

SAMPLED = 64
"""One connection in so many keeps the headers of its answers."""

Done = Callable[["Exchange"], None]


class Exchange:
    """One request and what came of it; ``done`` is called once, with the exchange."""

    __slots__ = (
        "body",
        "connection",
        "deadline_ns",
        "done",
        "done_ns",
        "finished",
        "headers",
        "request",
        "sent_ns",
        "status",
    )

    def __init__(self, request: bytes, done: Done, deadline_ns: int) -> None:
        self.request = request
        self.done = done
        self.deadline_ns = deadline_ns
        self.connection: _Connection | None = None
        self.status = FAILED
        self.body = b""
        self.headers: dict[bytes, bytes] = {}
        self.sent_ns = 0
        self.done_ns = 0
        self.finished = False

    def finish(self, status: int, body: bytes = b"") -> None:
        """Record the end and tell the caller; a second end is ignored."""
        if self.finished:
            return
        self.finished = True
        self.done_ns = time.monotonic_ns()
        self.status = status
        self.body = body
        self.connection = None
        self.done(self)


class _Connection(asyncio.Protocol):
    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def start(self, exchange: Exchange) -> None:
        if self._transport is None:
            exchange.finish(FAILED)
            return
        self._exchange = exchange
        exchange.connection = self
        exchange.sent_ns = exchange.sent_ns or time.monotonic_ns()
        self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:  # ours: the caller's `done` raised
            self.abort()
            raise error.__context__ or error from None
        except httptools.HttpParserError:
            self.abort()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        if self._parser.should_keep_alive():
            self._pool.release(self)
        else:
            self.abort()
        if exchange is not None:
            exchange.finish(self._parser.get_status_code(), body)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._transport = None
        self._pool.lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.finish(FAILED)

    @property
    def open(self) -> bool:
        return self._transport is not None


class _HeaderConnection(_Connection):
    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.lower()] = value


class HttpPool:
    """Keep-alive connections to one server; requests beyond ``limit`` wait in the client, and ``queued`` counts them.

    ``waiting_limit`` bounds that queue: what does not fit is *dropped* (counted, never sent), which
    makes a run invalid. Response headers cost time: one connection in ``SAMPLED`` keeps them.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        limit: int = 1024,
        timeout_s: float = 10.0,
        waiting_limit: int = 100_000,
    ) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url}: an http:// URL is expected")
        self._host, self._port = parts.hostname, parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._key = key
        self.limit = limit
        self.timeout_ns = int(timeout_s * 1e9)
        self.dropped = 0
        self.queued = 0
        self.most_connections = 0
        self._made = 0
        self._waiting_limit = waiting_limit
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[Exchange] = deque()
        self._open: deque[Exchange] = deque()
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HttpPool:
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._opening, *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        while self._connections:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)

    def encode(self, payload: Payload, key: str | None = None) -> bytes:
        """The request's bytes."""
        lines = [f"POST {self._prefix}{payload.path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        credential = key or self._key
        if credential:
            lines.append(f"Authorization: Bearer {credential}")
        if payload.content_type:
            lines.append(f"Content-Type: {payload.content_type}")
        lines.extend(f"{name}: {value}" for name, value in payload.headers)
        lines.append(f"Content-Length: {len(payload.body)}\r\n\r\n")
        return "\r\n".join(lines).encode() + payload.body

    async def warm(self, connections: int) -> None:
        """Open ``connections`` beforehand. Raises ``OSError`` if the server cannot be reached."""
        await asyncio.gather(*(self._connect() for _ in range(min(connections, self.limit) - len(self._connections))))
        self._idle.sort(key=lambda connection: isinstance(connection, _HeaderConnection))  # the last one is used first

    def submit(self, request: bytes, done: Done, key: str | None = None) -> Exchange:  # noqa: ARG002 - the bytes have it
        """Send ``request`` now, or as soon as a connection is free."""
        exchange = Exchange(request, done, time.monotonic_ns() + self.timeout_ns)
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                self._open.append(exchange)
                connection.start(exchange)
                return exchange
        if len(self._waiting) >= self._waiting_limit:
            self.dropped += 1
            return exchange
        # The generator has had its turn: waiting for a connection is the system's time, not schedule lag.
        exchange.sent_ns = time.monotonic_ns()
        self._open.append(exchange)
        self._waiting.append(exchange)
        if len(self._connections) + len(self._opening) >= self.limit:
            self.queued += 1
        else:
            task = asyncio.create_task(self._connect_or_fail())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return exchange

    def cancel(self, exchange: Exchange, status: int = WITHDRAWN) -> None:
        """Break the exchange's connection off, as a client that goes away does."""
        connection = exchange.connection
        exchange.finish(status)
        if connection is not None:
            connection.abort()

    async def post(self, payload: Payload) -> Exchange:
        """Send one request and wait for its end: warm-ups and single questions."""
        future: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self.submit(self.encode(payload), future.set_result)
        return await future

    def release(self, connection: _Connection) -> None:
        """Take back a connection that is free; the oldest waiting request gets it."""
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.finished:
                connection.start(exchange)
                return
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection; waiting requests get a new one."""
        self._connections.discard(connection)
        if self._waiting and self._sweeper is not None and not self._sweeper.done():
            task = asyncio.create_task(self._connect_or_fail())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        kind = _Connection if self._made % SAMPLED else _HeaderConnection
        self._made += 1
        _, connection = await loop.create_connection(lambda: kind(self), self._host, self._port)
        self._connections.add(connection)
        self.most_connections = max(self.most_connections, len(self._connections))
        self.release(connection)

    async def _connect_or_fail(self) -> None:
        try:
            await self._connect()
        except OSError:
            if self._waiting:
                self._waiting.popleft().finish(FAILED)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic_ns()
            while self._open and (self._open[0].finished or self._open[0].deadline_ns <= now):
                exchange = self._open.popleft()
                if not exchange.finished:
                    self.cancel(exchange, EXPIRED)
