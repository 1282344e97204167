"""A Triton that may crash when it is told that a caller has gone: it is not told, and ends what it has in hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from embedded.launcher import EmbeddedTriton, serving
from gateway.errors import BadUpstream, DeadlineExceeded
from gateway.triton import unwanted
from gateway.triton.client import TritonServer
from gateway.triton.tensors import from_numpy
from gateway.triton.unwanted import takes_cancellation
from gateway.types import InferenceRequest
from tests.live.faults.ledger import eventually
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.oip_repository import build

pytestmark = pytest.mark.live

REQUEST = InferenceRequest("identity", (from_numpy("INPUT", np.ones((1, 64), np.float32)),))
STREAM = InferenceRequest("stream", REQUEST.inputs)


@pytest.fixture
def old() -> Iterator[FakeTriton]:
    fake = FakeTriton(version="2.51.0")
    yield fake
    fake.close()


@pytest.fixture
async def server(old: FakeTriton) -> AsyncIterator[TritonServer]:
    server = TritonServer(old.address)
    await server.meet(10.0)
    yield server
    await server.close()


@pytest.mark.parametrize(
    ("version", "since", "takes"),
    [
        ("2.58.0", "2.58", True), ("2.60.0", "2.58", True), ("3.0.0", "2.58", True), ("2.58.0dev", "2.58", True),
        ("2.57.9", "2.58", False), ("2.9.0", "2.58", False), ("2.51.0", "0", True), ("", "2.58", False),
        ("unknown", "0", False),
    ],
)  # fmt: skip
def test_which_versions_are_told(version: str, since: str, takes: bool) -> None:
    assert takes_cancellation(version, since) is takes


@pytest.mark.parametrize("why", ["deadline", "gone"])
async def test_a_call_that_nobody_waits_for_runs_to_its_end(old: FakeTriton, server: TritonServer, why: str) -> None:
    old.mode = "hang"
    task = asyncio.ensure_future(server.infer(REQUEST, 0.3 if why == "deadline" else 30.0))
    await eventually(lambda: old.begun.acquire(blocking=False))
    if why == "gone":
        task.cancel()
    with pytest.raises(DeadlineExceeded if why == "deadline" else asyncio.CancelledError):
        await task
    assert server.unwanted == 1
    assert not await asyncio.to_thread(old.cancelled.acquire, timeout=0.5)
    old.mode = "echo"
    await eventually(lambda: server.unwanted == 0)
    assert (await server.infer(REQUEST, 10.0)).outputs


@pytest.mark.parametrize("why", ["deadline", "gone", "failed"])
async def test_an_endless_stream_is_cancelled_at_last(
    old: FakeTriton, server: TritonServer, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(unwanted, "PATIENCE_S", 1.0)
    stream = server.stream(STREAM, 0.3 if why == "deadline" else 30.0)
    await anext(stream)
    if why == "deadline":
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:
                pass
    elif why == "failed":
        old.mode = "fail"
        with pytest.raises(BadUpstream):
            async for _ in stream:
                pass
    else:
        await stream.aclose()
    assert server.unwanted == 1
    sent = old.parts
    if why != "failed":
        await eventually(lambda: old.parts > sent + 3)  # it goes on
        await asyncio.to_thread(old.cancelled.acquire, timeout=30)
    await eventually(lambda: server.unwanted == 0)


async def test_closing_leaves_nothing(old: FakeTriton) -> None:
    server = TritonServer(old.address)
    stream = server.stream(STREAM, 30.0)
    await anext(stream)
    await stream.aclose()
    assert server.unwanted == 1
    await server.close()
    assert server.unwanted == 0
    assert await asyncio.to_thread(old.cancelled.acquire, timeout=30)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    folder = tmp_path_factory.mktemp("unwanted")
    with serving(build(folder / "models"), folder / "triton", ["words"]) as running:
        yield running


async def test_the_real_one_survives_clients_that_leave_its_streams(triton: EmbeddedTriton) -> None:
    """Told of them (``CANCEL_SINCE=0``), the embedded Triton dies (docs/decisions/0008)."""
    server = TritonServer(triton.grpc_url, cancel_since=os.environ.get("CANCEL_SINCE", "2.58"))
    await server.meet(10.0)
    left = 0

    async def leave(text: str) -> None:
        nonlocal left
        request = InferenceRequest("words", (from_numpy("text_input", np.array([text.encode()], dtype=object)),))
        for _ in range(400):
            stream = server.stream(request, 30.0)
            with contextlib.suppress(BadUpstream):
                await anext(stream)
            await stream.aclose()
            left += 1

    pid = triton.pid
    try:
        await asyncio.gather(*(leave(text) for text in ("one two three", "one fail", "fail", "one two")))
    finally:
        print(f"\n{left} streams were left")
    assert left == 1600
    await eventually(lambda: server.unwanted == 0)
    assert (triton.poll(), triton.pid) == (None, pid)
    await server.close()
