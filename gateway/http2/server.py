"""The gRPC listener: connections on one socket, with TLS or without, and their end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial
from typing import Any

from gateway.background import Background
from gateway.http2.connection import Connection
from gateway.http2.frames import NO_ERROR
from gateway.http2.headers import HeaderReader
from gateway.http2.intake import Memory
from gateway.http2.rpc import Head, Methods, RpcStream, read_head
from gateway.http2.stream import Limits

_CHECK_S = 0.5
_FAREWELL_S = 1.0
"""Time in which a client answers that it has heard of the end."""
_POLL_S = 0.02


class RpcServer:
    """Serves ``methods`` on a bound socket; ``start`` and ``stop`` once."""

    def __init__(
        self, methods: Methods, limits: Limits, *, max_message_bytes: int, max_held_bytes: int, max_connections: int
    ) -> None:
        self.connections: set[Connection] = set()
        self._methods, self._limits = methods, limits
        self._max_message_bytes, self._max_connections = max_message_bytes, max_connections
        self._memory = Memory(max_held_bytes)
        self._socket: socket.socket | None = None
        self._tls: dict[str, Any] = {}
        self._server: asyncio.Server | None = None
        self._background = Background()

    def listen_on(
        self, bound: socket.socket, tls: ssl.SSLContext | None = None, handshake_timeout_s: float = 10.0
    ) -> None:
        """Where :meth:`start` serves. The socket is closed by :meth:`stop`."""
        self._socket = bound
        if tls is not None:
            self._tls = {
                "ssl": tls, "ssl_handshake_timeout": handshake_timeout_s, "ssl_shutdown_timeout": handshake_timeout_s,
            }  # fmt: skip

    async def start(self) -> None:
        """Accept connections."""
        loop: Any = asyncio.get_running_loop()  # uvloop's knows ssl_shutdown_timeout, on every Python
        self._server = await loop.create_server(self._connect, sock=self._socket, **self._tls)
        self._background.every(_CHECK_S, self._check, "gRPC connections")

    def _connect(self) -> asyncio.BaseProtocol:
        if len(self.connections) >= self._max_connections:
            return _Refusal()
        open_stream = partial(RpcStream, methods=self._methods, max_message_bytes=self._max_message_bytes)
        reader: HeaderReader[Head] = HeaderReader(read_head)
        return Connection(self._limits, reader, open_stream, self.connections, self._memory)

    async def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            connection.check(now, _CHECK_S)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing new; let what is in flight end, at most ``grace_s`` long."""
        if self._server is not None:
            self._server.close()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for connection in list(self.connections):
            connection.leave()
        while self.connections and loop.time() - begin < grace_s:
            busy = any(connection.streams or connection.orphans for connection in self.connections)
            if not busy and loop.time() - begin > _FAREWELL_S:
                break
            await asyncio.sleep(_POLL_S)
        left = list(self.connections)
        for connection in left:
            connection.end(NO_ERROR, "shutting down")
        while loop.time() - begin < grace_s + _FAREWELL_S:
            if not any(connection.orphans for connection in left):
                break
            await asyncio.sleep(_POLL_S)
        for connection in list(self.connections):
            connection.abort()
        await self._background.stop()


class _Refusal(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
