"""What a gateway process weighs when it is idle, and that requests do not make it heavier.

``SOAK_SECONDS`` sets the length of the soak; 20 is for every day, 2000 makes a million requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.http_client import Exchange, HttpPool
from benchmarks.workloads import Payload
from tests.live.faults.conftest import Fleet
from tests.live.faults.servers import GatewayProcess

pytestmark = pytest.mark.live

Poll = Callable[..., None]
MIB = 2**20
SOAK_S = float(os.environ.get("SOAK_SECONDS", "20"))
MAX_GROWTH = 16 * MIB
"""In the second half: caches with a bound may still fill; what grows with requests is beyond it in every long soak."""
CLIENTS = 32


@pytest.fixture
def alone(fleet: Fleet, tmp_path: Path, poll: Poll) -> Iterator[GatewayProcess]:
    """A gateway of its own before the fleet's Tritons."""
    targets = ",".join(proxy.address for proxy in fleet.proxies)
    gateway = GatewayProcess(tmp_path, fleet.repository, targets, poll).bootstrap().start()
    yield gateway
    gateway.stop()


def resident(gateway: GatewayProcess) -> int:
    """Bytes of its RSS."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
    assert found is not None
    return int(found[1]) * 1024


def test_an_idle_gateway_is_small(alone: GatewayProcess) -> None:
    size = resident(alone) / MIB
    print(f"\nidle: {size:.0f} MiB")
    assert size < 150


@pytest.mark.slow
async def test_requests_leave_nothing_behind(alone: GatewayProcess) -> None:
    def infer(number: float, model: str = "recorder", extra: str = "") -> Payload:
        tensor = {"name": f"INPUT{extra}", "shape": [1, 2], "datatype": "FP64", "data": [number, 0.0]}
        return Payload(f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")

    statuses: Counter[int] = Counter()
    sizes: list[int] = []
    begin = time.monotonic()
    async with HttpPool(alone.url, alone.key, limit=CLIENTS) as pool:
        good = [pool.encode(infer(float(number))) for number in range(100)]
        bad = [
            pool.encode(infer(1.0, extra="X")),  # 422
            pool.encode(infer(1.0, model="none")),  # 404
            pool.encode(infer(1.0), "tg_live_wrong"),  # 401
            pool.encode(Payload("/v2/models/recorder/infer", b"{", "application/json")),  # 400
            pool.encode(infer(-1.0)),  # 502
        ]
        requests = [bad[number // 20 % 5] if number % 20 == 0 else good[number % 100] for number in range(1000)]

        async def client(number: int) -> None:
            while time.monotonic() < begin + SOAK_S:
                done: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
                number = (number + 1) % 1000
                pool.submit(requests[number], done.set_result)
                statuses[(await done).status] += 1

        async def weigh() -> None:
            while time.monotonic() < begin + SOAK_S:
                sizes.append(resident(alone))
                await asyncio.sleep(SOAK_S / 20)

        await asyncio.gather(weigh(), *(client(number * 31) for number in range(CLIENTS)))
    middle, last = max(sizes[8:12]), max(sizes[-4:])
    total = sum(statuses.values())
    print(f"\n{total} requests {dict(statuses)}; MiB: {[round(size / MIB) for size in sizes]}")
    assert statuses.keys() <= {200, 400, 401, 404, 422, 429, 502}
    assert statuses[200] > 0.9 * total
    assert last - middle < MAX_GROWTH, sizes
