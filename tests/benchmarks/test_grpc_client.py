"""The gRPC load client against a real server: what it sends, and how answers count."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from benchmarks.client import connect
from benchmarks.grpc_client import METHOD
from benchmarks.openloop import OpenLoop
from benchmarks.pacing import constant
from benchmarks.recording import Outcome
from benchmarks.workloads import WORKLOADS

KEYS = ("hot", "first", "second")


class Echo(grpc.GenericRpcHandler):
    """Answers every message with itself; a caller without a known key is refused."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == METHOD else None

    async def _answer(self, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        key = dict(context.invocation_metadata()).get("authorization", "")
        self.calls[key] = self.calls.get(key, 0) + 1
        if key.removeprefix("Bearer ") not in KEYS:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who is it?")
        return message


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, Echo]]:
    server, handler = grpc.aio.server(), Echo()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"grpc://127.0.0.1:{port}", handler
    await server.stop(0)


async def test_each_tenant_calls_with_its_own_key(echo: tuple[str, Echo]) -> None:
    url, handler = echo

    def tenant(index: int) -> tuple[int, str | None]:
        return index % 3, KEYS[index % 3]

    async with connect(url, KEYS[0]) as client:
        await client.warm(1)
        loop = OpenLoop(client, WORKLOADS["identity"](1), constant(100, 0.3), tenant=tenant, max_lag_ms=1e6)
        run = await loop.run(0.3)
    assert run.recording.count(Outcome.OK) == len(run.recording) == 30
    assert handler.calls == {f"Bearer {key}": 10 for key in KEYS}


async def test_without_another_key_the_clients_own_is_used(echo: tuple[str, Echo]) -> None:
    url, handler = echo
    workload = WORKLOADS["identity"](1)
    async with connect(url, KEYS[1]) as client:
        assert (await client.post(workload.request(0))).status == 200
    async with connect(url, None) as client:
        assert (await client.post(workload.request(0))).status == 401
    assert handler.calls == {f"Bearer {KEYS[1]}": 1, "": 1}
