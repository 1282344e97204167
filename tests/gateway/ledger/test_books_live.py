"""The books against a real Triton's own counters, while it batches."""

import asyncio
import os
import time
from types import SimpleNamespace

import pytest
from onnx import helper

from embedded.errors import WheelNotFoundError
from embedded.launcher import serving
from embedded.layout import find_wheel
from gateway.triton.client import TritonServer
from gateway.types import InferenceRequest, Tensor
from tests.embedded.repository import Repository
from tests.gateway.ledger.support import fetch, make_call, until

pytestmark = pytest.mark.live

CLIENTS, SECONDS = 16, 3.0


@pytest.fixture(scope="module")
def embedded_triton(tmp_path_factory):
    """A Triton that serves ``identity`` and batches whatever waits."""
    try:
        find_wheel()
    except WheelNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("models")
    Repository(folder).onnx(
        "identity",
        [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])],
        [("INPUT", "FP32", [64])],
        [("OUTPUT", "FP32", [64])],
        max_batch_size=32,
        extra="dynamic_batching { }",
    )
    with serving(folder, tmp_path_factory.mktemp("triton"), ["identity"]) as triton:
        yield triton


@pytest.fixture
async def server(embedded_triton):
    server = TritonServer(embedded_triton.grpc_url)
    yield server
    await server.close()


async def counters(server):
    return next(entry for entry in await server.statistics(5.0) if entry.model == "identity")


@pytest.fixture
def triton(server):
    """What the ledger reads, in place of counters of our own."""
    return SimpleNamespace(statistics=lambda: server.statistics(5.0))


def request(rows):
    return InferenceRequest("identity", (Tensor("INPUT", "FP32", (rows, 64), bytes(rows * 256)),))


async def test_every_row_and_every_nanosecond_is_billed_once(make_ledger, store, server):
    before = await counters(server)
    ledger = await make_ledger(interval_s=0.2)
    begin = time.monotonic()

    async def client(number):
        rows = 1 + number % 3
        while time.monotonic() < begin + SECONDS:
            call = make_call("identity", rows=rows)
            await ledger.reserve(call)
            if number == 0:  # one that fails before it reaches Triton
                await ledger.finish(call, "failed", 502)
                await asyncio.sleep(0.05)
                continue
            await server.infer(request(rows), 10.0)
            await ledger.finish(call, "completed", 200)
            assert ledger.imbalance.get("identity", 0) == 0

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    wall_ns = (time.monotonic() - begin) * 1e9
    await until(lambda: not ledger.unsettled)
    await ledger.stop()
    after = await counters(server)
    (sums,) = await fetch(
        store, "SELECT sum(rows), sum(compute_ns), count(*) FROM usage_records WHERE basis = 'measured'"
    )
    assert sums[2] == ledger.counters.completed > CLIENTS
    assert sums[0] == after.inference_count - before.inference_count
    assert sums[1] == after.compute_ns - before.compute_ns
    assert ledger.imbalance["identity"] == 0
    assert after.execution_count - before.execution_count < ledger.counters.completed  # it did batch
    assert sums[1] < wall_ns  # one instance cannot have computed for longer than it had


async def test_an_inference_past_the_ledger_is_flagged(make_ledger, server):
    ledger = await make_ledger(interval_s=0.05)
    await until(lambda: ledger.compared.get("identity"))
    await server.infer(request(5), 10.0)
    await until(lambda: ledger.imbalance.get("identity") == 5)
