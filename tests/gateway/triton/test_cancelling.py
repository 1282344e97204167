"""Inference over HTTP that is cancelled as its connection opens, turn of the loop by turn: nothing is left of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import uvloop

from gateway.triton.http import HttpInference, _Connection
from gateway.triton.tensors import from_numpy
from gateway.types import InferenceRequest

REQUEST = InferenceRequest("m", (from_numpy("x", np.zeros((1, 1), dtype=np.float32)),))


class Silent(asyncio.Protocol):
    """A server that answers nothing."""

    open_connections: set[Silent]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open_connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.open_connections.discard(self)


async def leave(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    Silent.open_connections = set()
    server = await loop.create_server(Silent, "127.0.0.1", 0)
    call: asyncio.Task[object]

    def cancel_after(left: int) -> None:
        if left:
            loop.call_soon(cancel_after, left - 1)
        else:
            call.cancel()

    def connection_made(connection: _Connection, transport: asyncio.BaseTransport) -> None:
        made(connection, transport)
        cancel_after(turns)

    made = _Connection.connection_made
    monkeypatch.setattr(_Connection, "connection_made", connection_made)
    call = asyncio.create_task(HttpInference("127.0.0.1", server.sockets[0].getsockname()[1], 5.0).infer(REQUEST, None))
    try:
        await asyncio.wait({call}, timeout=5)
        assert call.cancelled(), "it waits for an answer that nobody wants"
        for _ in range(500):
            if not Silent.open_connections:
                break
            await asyncio.sleep(0.01)
        assert not Silent.open_connections
    finally:
        call.cancel()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", range(6))
def test_who_leaves_as_a_connection_opens_has_left(
    new_loop: Callable[[], asyncio.AbstractEventLoop], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = new_loop()
    try:
        loop.run_until_complete(leave(turns, monkeypatch))
    finally:
        loop.close()
