"""SIGTERM under load: whoever asks is answered, and what was answered is in the books."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.live.faults.conftest import Fleet
from tests.live.faults.ledger import ClientLedger, eventually
from tests.live.faults.servers import GatewayProcess

pytestmark = pytest.mark.live

Poll = Callable[..., None]


@pytest.fixture
def passing(fleet: Fleet, tmp_path: Path, poll: Poll) -> Iterator[Fleet]:
    """The fleet with a gateway of its own that is about to go, and goes on serving for a second."""
    targets = ",".join(road.address for road in fleet.roads)
    gateway = GatewayProcess(tmp_path, fleet.repository, targets, poll, shutdown_delay_s="1", drain_s="10")
    gateway.bootstrap().start()
    try:
        yield Fleet(fleet.tritons, fleet.roads, gateway, fleet.repository)
    finally:
        gateway.stop()


async def test_sigterm_under_load_fails_nobody(passing: Fleet, poll: Poll) -> None:
    gateway, books = passing.gateway, ClientLedger(passing, milliseconds=30)
    terminated_at = 0.0
    refused_after: list[float] = []

    async def client_that_retries() -> None:
        async with books.client() as client:
            while True:
                entry = await books.ask(client)
                now = time.monotonic()
                if entry.status == 503:
                    assert entry.headers["connection"] == "close"
                    refused_after.append(now - terminated_at)
                    return  # Retry-After: its next request goes elsewhere
                if entry.status == 0:
                    return

    clients = [asyncio.create_task(client_that_retries()) for _ in range(12)]
    await eventually(lambda: books.count(200) >= 100)
    kept = httpx.AsyncClient(base_url=gateway.url, headers=gateway.headers, timeout=30)
    assert (await kept.get("/v2/models/recorder/ready")).status_code == 200
    gateway.process.send_signal(signal.SIGTERM)
    terminated_at = time.monotonic()
    while (ready := await kept.get("/healthz/ready")).status_code == 200:
        assert time.monotonic() < terminated_at + 1
    assert ready.status_code == 503
    assert "shutting down" in ready.text
    assert ready.headers["connection"] == "close"
    before = books.count(200)
    assert (await kept.get("/healthz/live")).status_code == 200
    await asyncio.wait_for(asyncio.gather(*clients), 20)
    await kept.aclose()
    assert books.count(200) > before  # it went on serving while it was already not ready
    assert await asyncio.to_thread(gateway.process.wait, 30) == 0
    lost = [entry for entry in books.entries if entry.status == 0]
    assert not lost, f"{len(lost)} of {len(books.entries)} requests got no answer"
    books.check(poll, {200, 503})
    assert min(refused_after, default=1.0) > 0.8  # not before the delay was over
    states = {state for state, _, _ in gateway.usage().values()}
    assert states == {"completed"}  # nothing was begun and left


async def test_what_is_in_flight_is_finished_and_grpc_too(passing: Fleet, poll: Poll) -> None:
    gateway, books = passing.gateway, ClientLedger(passing)
    tensor = tritonclient.grpc.aio.InferInput("INPUT", [1, 2], "FP64")
    tensor.set_data_from_numpy(np.array([[999_999.0, 2500.0]]))
    async with books.client() as client, tritonclient.grpc.aio.InferenceServerClient(gateway.grpc_address) as rpc:
        long = asyncio.create_task(books.ask(client, milliseconds=2500))
        call = asyncio.create_task(rpc.infer("recorder", [tensor], headers=gateway.headers))
        await eventually(lambda: passing.executions(999_999))
        gateway.process.send_signal(signal.SIGTERM)
        for _ in range(40):
            if not await rpc.is_server_ready(headers=gateway.headers):
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("the server stayed ready")
        assert (await long).right
        assert (await call).as_numpy("OUTPUT").tolist() == [[3 * 999_999.0 + 1]]
        with pytest.raises(InferenceServerException) as caught:
            await rpc.infer("recorder", [tensor], headers=gateway.headers)
        assert caught.value.status() == str(grpc.StatusCode.UNAVAILABLE)
    assert await asyncio.to_thread(gateway.process.wait, 30) == 0
    assert sorted(state for state, _, _ in gateway.usage().values()) == ["completed", "completed"]
