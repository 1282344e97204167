"""What a gateway process weighs when it is idle, and that requests do not make it heavier.

``SOAK_SECONDS`` sets the length of the soaks (12 are for every day), ``SOAK_REQUESTS`` (over 40,000) ends them
earlier. A million::

    SOAK_SECONDS=2300 SOAK_REQUESTS=1000000 python -m pytest -s -k leave tests/live/faults/test_memory.py
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from benchmarks.http_client import Exchange, HttpPool
from benchmarks.workloads import Payload
from gateway.catalog import Catalog
from tests.live.faults.conftest import Fleet
from tests.live.faults.servers import ROOT, GatewayProcess

pytestmark = pytest.mark.live

Poll = Callable[..., None]
MIB = 2**20
SOAK_S = float(os.environ.get("SOAK_SECONDS", "12"))
SOAK_REQUESTS = int(os.environ.get("SOAK_REQUESTS", str(10**9)))
LOOKS = max(20, round(SOAK_S / 20))
WARM = 20_000
"""Requests after which a gateway weighs what it goes on weighing: the collector looks rarely, and caches are full."""
MAX_GROWTH = 16 * MIB
"""In the second half: caches with a bound may still fill; what grows with requests is beyond it in every long soak."""
CLIENTS, GRPC_CLIENTS = 28, 4


@pytest.fixture
def alone(fleet: Fleet, tmp_path: Path, poll: Poll) -> Iterator[GatewayProcess]:
    """A gateway of its own before the fleet's Tritons."""
    targets = ",".join(road.address for road in fleet.roads)
    gateway = GatewayProcess(tmp_path, fleet.repository, targets, poll).bootstrap().start()
    yield gateway
    gateway.stop()


def resident(gateway: GatewayProcess) -> int:
    """Bytes of its RSS."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
    assert found is not None
    return int(found[1]) * 1024


def test_an_idle_gateway_is_small(request: pytest.FixtureRequest, fleet: Fleet, tmp_path: Path, poll: Poll) -> None:
    """With every model of the repository, and after it was looked at: 150 MB of it are resident at most."""
    repository = ROOT / "model_repository"
    if not all(card.built for card in Catalog.load(repository)):
        request.getfixturevalue("stack")  # builds them
    targets = ",".join(road.address for road in fleet.roads)
    gateway = GatewayProcess(tmp_path, repository, targets, poll).bootstrap().start()
    try:
        assert httpx.get(gateway.metrics_url, timeout=10).status_code == 200
        assert httpx.get(f"{gateway.url}/v1/models", headers=gateway.headers, timeout=10).status_code == 200
        time.sleep(2.0)  # two readings of every timer that it has
        size = resident(gateway)
    finally:
        gateway.stop()
    print(f"\nidle: {size / 1e6:.0f} MB")
    assert size < 150e6


@pytest.mark.slow
@pytest.mark.timeout(2400)
async def test_requests_leave_nothing_behind(alone: GatewayProcess) -> None:
    """Good and bad ones, over HTTP and gRPC, for ``SOAK_SECONDS`` or until they are ``SOAK_REQUESTS``.

    However slow the machine, as many count as were sent to warm the gateway up.
    """
    statuses: Counter[object] = Counter()
    sizes: list[tuple[int, int]] = []
    """How many requests there had been, and the bytes then."""
    end = time.monotonic() + SOAK_S

    def going() -> bool:
        total = statuses.total()
        return total < SOAK_REQUESTS and (time.monotonic() < end or total < 2 * WARM)

    async def over_http(pool: HttpPool, requests: list[bytes], number: int) -> None:
        while going():
            done: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
            number = (number + 1) % len(requests)
            pool.submit(requests[number], done.set_result)
            statuses[(await done).status] += 1

    async def over_grpc(channel: grpc.aio.Channel) -> None:
        stub, metadata = service_pb2_grpc.GRPCInferenceServiceStub(channel), tuple(alone.headers.items())
        message = pb.ModelInferRequest(model_name="recorder")
        message.inputs.add(name="INPUT", datatype="FP64", shape=[1, 2]).contents.fp64_contents.extend([7.0, 0.0])
        wrong, sent = pb.ModelInferRequest(model_name="none"), 0
        while going():
            try:
                sent += 1
                await stub.ModelInfer(message if sent % 20 else wrong, metadata=metadata, timeout=60)
                statuses["OK"] += 1
            except grpc.aio.AioRpcError as error:
                statuses[error.code().name] += 1

    async def weigh() -> None:
        while going():
            sizes.append((statuses.total(), resident(alone)))
            if SOAK_S > 60:
                print(f"{statuses.total()} requests: {sizes[-1][1] / MIB:.1f} MiB", flush=True)
            await asyncio.sleep(SOAK_S / LOOKS)

    async with (
        HttpPool(alone.url, alone.key, limit=CLIENTS) as pool,
        grpc.aio.insecure_channel(alone.grpc_address) as channel,
    ):
        requests = soak_requests(pool)
        await asyncio.gather(
            weigh(),
            *(over_http(pool, requests, number * 31) for number in range(CLIENTS)),
            *(over_grpc(channel) for _ in range(GRPC_CLIENTS)),
        )
    sizes.append((statuses.total(), resident(alone)))
    print(f"\n{dict(statuses)}; requests and MiB: {[(count, round(size / MIB)) for count, size in sizes]}")
    assert statuses.keys() <= {200, 400, 401, 404, 422, 429, 502, "OK", "NOT_FOUND"}
    assert statuses[200] + statuses["OK"] > 0.9 * statuses.total()
    middle = (WARM + statuses.total()) / 2
    before = max(size for count, size in sizes if WARM <= count <= middle)
    after = max(size for count, size in sizes if count > middle)
    assert after - before < MAX_GROWTH, sizes


@pytest.mark.slow
@pytest.mark.timeout(2400)
async def test_no_dialect_leaves_anything_behind(stack: Any) -> None:
    """Texts, pictures, tensors, compressed bodies and streams, good and bad, at the gateway with every model."""
    calls = dialect_calls()
    statuses: Counter[int] = Counter()
    sizes: list[tuple[int, float]] = []
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(
        base_url=stack.gateway_url, headers=stack.headers, timeout=120, limits=limits
    ) as client:

        async def send(number: int) -> None:
            answer = await client.post(**calls[number % len(calls)])
            statuses[answer.status_code] += 1

        for number in range(3 * len(calls)):  # what is loaded with the first of a kind stays
            await send(number)
        end = time.monotonic() + SOAK_S

        def going() -> bool:
            return time.monotonic() < end and statuses.total() < SOAK_REQUESTS

        async def work(number: int) -> None:
            while going():
                number += 1
                await send(number)

        async def weigh() -> None:
            while going():
                text = (await client.get(stack.metrics_url)).text
                found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.M)
                assert found is not None
                sizes.append((statuses.total(), float(found[1])))
                if SOAK_S > 60:
                    print(f"{sizes[-1][0]} requests: {sizes[-1][1] / MIB:.1f} MiB", flush=True)
                await asyncio.sleep(SOAK_S / LOOKS)

        await asyncio.gather(weigh(), *(work(number * 7) for number in range(8)))
    print(f"\n{dict(statuses)}; requests and MiB: {[(count, round(size / MIB)) for count, size in sizes]}")
    assert statuses.keys() <= {200, 400, 404, 415, 422, 503}
    assert statuses[200] > 0.6 * statuses.total()
    half = sizes[len(sizes) // 3 : 2 * len(sizes) // 3]
    assert max(size for _, size in sizes[-len(half) :]) - max(size for _, size in half) < 2 * MAX_GROWTH, sizes


def dialect_calls() -> list[dict[str, Any]]:
    """One of each kind: arguments of a POST."""
    picture = io.BytesIO()
    Image.radial_gradient("L").resize((640, 480)).convert("RGBA").save(picture, "PNG")
    photo = io.BytesIO()
    Image.linear_gradient("L").resize((1600, 1200)).convert("RGB").save(photo, "JPEG")
    rows = np.random.default_rng(0).standard_normal((64, 64)).astype("<f4")
    tensor = {"name": "INPUT", "shape": [64, 64], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": rows.nbytes}}]}).encode()
    sized = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    plain = json.dumps({"inputs": [{**tensor, "data": rows.tolist()}]}).encode()
    infer, text = "/v2/models/identity/infer", "The tide came in, and it was wonderful. " * 20
    zipped = {"content-type": "application/json", "content-encoding": "gzip", "accept-encoding": "gzip"}
    labels = {"candidate_labels": ["the sea", "politics"]}
    similar = {"source_sentence": text, "sentences": [text, "Another."]}
    return [
        {"url": "/hf/models/sentiment", "json": {"inputs": [text, "No."]}},
        {"url": "/hf/models/entities", "json": {"inputs": "Angela Merkel lives in Berlin."}},
        {"url": "/hf/models/qa", "json": {"inputs": {"question": "What came in?", "context": text}}},
        {
            "url": "/hf/models/embeddings/pipeline/zero-shot-classification",
            "json": {"inputs": text, "parameters": labels},
        },
        {"url": "/hf/models/imagenet", "content": photo.getvalue()},
        {"url": "/hf/models/imagenet", "content": picture.getvalue(), "headers": {"content-type": "image/png"}},
        {"url": "/hf/models/digits", "content": picture.getvalue()},
        {"url": "/hf/models/imagenet", "content": photo.getvalue()[:5_000]},
        {"url": "/hf/models/sentiment", "json": {"inputs": []}},
        {"url": "/v1/embeddings", "json": {"model": "embeddings", "input": [text, "No."]}},
        {"url": "/v1/embeddings", "json": {"model": "embeddings", "input": text, "encoding_format": "base64"}},
        {"url": "/v1/embeddings", "content": b"{"},
        {"url": "/tei/embeddings/embed", "json": {"inputs": ["One.", "Two."]}},
        {"url": "/tei/embeddings/rerank", "json": {"query": "tide", "texts": [text, "No."]}},
        {"url": "/tei/embeddings/similarity", "json": {"inputs": similar}},
        {"url": "/tei/embeddings/tokenize", "json": {"inputs": text * 20}},
        {"url": "/tei/embeddings/embed", "json": {"inputs": 7}},
        {"url": infer, "content": head + rows.tobytes(), "headers": sized},
        {"url": infer, "content": plain, "headers": {"content-type": "application/json"}},
        {"url": infer, "content": gzip.compress(plain), "headers": zipped},
        {"url": infer, "content": plain[:-100]},
        {"url": "/v2/models/identity/generate_stream", "json": {"INPUT": rows[0].tolist()}},
    ]


def soak_requests(pool: HttpPool) -> list[bytes]:
    """A thousand; one in twenty is wrong in one of five ways."""

    def infer(number: float, model: str = "recorder", extra: str = "") -> Payload:
        tensor = {"name": f"INPUT{extra}", "shape": [1, 2], "datatype": "FP64", "data": [number, 0.0]}
        return Payload(f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")

    good = [pool.encode(infer(float(number))) for number in range(100)]
    bad = [
        pool.encode(infer(1.0, extra="X")),  # 422
        pool.encode(infer(1.0, model="none")),  # 404
        pool.encode(infer(1.0), "tg_live_wrong"),  # 401
        pool.encode(Payload("/v2/models/recorder/infer", b"{", "application/json")),  # 400
        pool.encode(infer(-1.0)),  # 502
    ]
    return [bad[number // 20 % 5] if number % 20 == 0 else good[number % 100] for number in range(1000)]
