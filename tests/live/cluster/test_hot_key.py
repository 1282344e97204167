"""A key that sends nine tenths of the load, and what others notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from tests.live.cluster.conftest import BODY, INFER, Cluster

pytestmark = [pytest.mark.live, pytest.mark.database, pytest.mark.redis, pytest.mark.slow, pytest.mark.alone]

REQUESTS = 150
EVERY_S = 0.03
"""Between two requests of one client."""
HOT = 9
"""Clients of the hot key, for one of the quiet one."""
MARGIN_S = 0.05
"""Beside a factor of two: others use this machine, and the hot clients run where the quiet one runs."""
TRIES = 4


async def ask(http: httpx.AsyncClient) -> tuple[float, int]:
    """Seconds and status of one request; the next may follow at once when this returns."""
    sent = time.monotonic()
    answer = await http.post(INFER, json=BODY)
    taken = time.monotonic() - sent
    await asyncio.sleep(max(0.0, EVERY_S - taken))
    return taken, answer.status_code


async def p99(http: httpx.AsyncClient) -> float:
    """Seconds within which 99 % of requests at a steady pace are answered; each of them is."""
    answers = [await ask(http) for _ in range(REQUESTS)]
    assert {status for _, status in answers} == {200}
    return float(np.quantile([taken for taken, _ in answers], 0.99))


@asynccontextmanager
async def hammering(http: httpx.AsyncClient) -> AsyncIterator[Counter[int]]:
    """Clients of the hot key at the same pace each; statuses of their answers."""
    statuses: Counter[int] = Counter()
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            statuses[(await ask(http))[1]] += 1

    clients = [asyncio.create_task(client()) for _ in range(HOT)]
    try:
        yield statuses
    finally:
        over.set()
        await asyncio.gather(*clients)


async def test_a_hot_key_leaves_the_others_their_p99(cluster: Cluster) -> None:
    tier = {"concurrency": 4}
    assert cluster.call("PUT", "/admin/tiers/hot", tier).status_code == 200
    cluster.agree()
    keys = [cluster.make_key(project=name, tier=tier) for name, tier in (("hot", "hot"), ("quiet", "default"))]
    tries: list[tuple[float, float]] = []
    async with contextlib.AsyncExitStack() as stack:
        hot, quiet = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=cluster.gateways[0].url, headers=headers, timeout=30)
            )
            for headers in keys
        ]
        await p99(quiet)  # connections, caches
        while len(tries) < TRIES and not any(map(unnoticed, tries)):
            alone = await p99(quiet)
            async with hammering(hot) as statuses:
                beside = await p99(quiet)
            assert set(statuses) <= {200, 429}, statuses
            assert sum(statuses.values()) > 2 * REQUESTS  # fewer than nine times as many where the machine is busy
            tries.append((alone, beside))
    print("p99 of the quiet key in s, alone and beside the hot one:", tries)
    assert any(map(unnoticed, tries)), tries


def unnoticed(p99s: tuple[float, float]) -> bool:
    """Whether the second is within the margin of the first."""
    alone, beside = p99s
    return beside <= 2 * alone + MARGIN_S
