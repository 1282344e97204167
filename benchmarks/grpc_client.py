"""``inference.GRPCInferenceService/ModelInfer`` for load: serialised messages in, serialised messages out.

The channel is grpc's own; requests are prepared as bytes (see ``workloads.tensors``) and answers stay
bytes, so that no time goes into Protocol Buffers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias

import grpc
import grpc.aio

from benchmarks.http_client import Done, Exchange
from benchmarks.judgement import EXPIRED, FAILED, WITHDRAWN
from benchmarks.workloads import Payload

Metadata: TypeAlias = tuple[tuple[str, str], ...]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_OK = 200
STATUSES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
}
"""gRPC's codes as the HTTP statuses that recordings count by."""


class GrpcPool:
    """Calls over ``channels`` HTTP/2 connections to ``host:port``, with the key in the metadata."""

    def __init__(self, address: str, key: str | None = None, *, channels: int = 1, timeout_s: float = 10.0) -> None:
        self._address = address.removeprefix("grpc://")
        self._metadata = _credential(key) if key else None
        self._count = channels
        self._timeout_s = timeout_s
        self._channels: list[grpc.aio.Channel] = []
        self._calls: list[grpc.aio.UnaryUnaryMultiCallable] = []
        self._next = 0
        self._tasks: dict[Exchange, asyncio.Task[None]] = {}
        self.dropped = 0
        self.queued = 0
        self.most_connections = channels

    async def __aenter__(self) -> GrpcPool:
        options: Sequence[tuple[str, int]] = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ]
        for _ in range(self._count):
            channel = grpc.aio.insecure_channel(self._address, options=options)
            self._channels.append(channel)
            self._calls.append(channel.unary_unary(METHOD))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    def encode(self, payload: Payload, key: str | None = None) -> bytes:  # noqa: ARG002 - the metadata have the key
        """The serialised request. Raises ``ValueError`` for a workload that is no inference."""
        if payload.message is None:
            raise ValueError("this workload cannot go over gRPC: it is a task call")
        return payload.message

    async def warm(self, connections: int) -> None:  # noqa: ARG002 - calls share the channels
        """Wait until the channels are connected. Raises ``OSError`` if they are not in five seconds."""
        try:
            await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in self._channels)), 5)
        except asyncio.TimeoutError as error:
            raise OSError(f"no gRPC server at {self._address}") from error

    def submit(self, request: bytes, done: Done, key: str | None = None) -> Exchange:
        """Start a call, with ``key`` in place of the client's own."""
        exchange = Exchange(request, done, 0)
        exchange.sent_ns = time.monotonic_ns()
        task = asyncio.get_running_loop().create_task(
            self._call(exchange, self._metadata if key is None else _credential(key))
        )
        self._tasks[exchange] = task
        task.add_done_callback(lambda _: self._tasks.pop(exchange, None))
        return exchange

    def cancel(self, exchange: Exchange, status: int = WITHDRAWN) -> None:
        """Cancel the call on the wire."""
        task = self._tasks.get(exchange)
        exchange.finish(status)
        if task is not None:
            task.cancel()

    async def post(self, payload: Payload) -> Exchange:
        """One call, awaited."""
        future: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self.submit(self.encode(payload), future.set_result)
        return await future

    async def _call(self, exchange: Exchange, metadata: Metadata | None) -> None:
        self._next = (self._next + 1) % self._count
        try:
            body = await self._calls[self._next](exchange.request, timeout=self._timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            exchange.finish(EXPIRED if code is grpc.StatusCode.DEADLINE_EXCEEDED else STATUSES.get(code, FAILED))
        else:
            exchange.finish(_OK, body)


def _credential(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)
