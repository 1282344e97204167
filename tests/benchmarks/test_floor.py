"""The bare servers that ``tidegate bench overhead`` measures beside the gateway."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks import floor, grpc_floor
from benchmarks.client import connect, judge
from benchmarks.recording import Outcome
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize(("scheme", "serving"), [("http", floor.serving), ("grpc", grpc_floor.serving)])
async def test_it_gives_the_tensor_back(
    scheme: str, serving: Callable[[Path], AbstractContextManager[str]], tmp_path: Path
) -> None:
    workload = WORKLOADS["identity"](1)
    payload = workload.request(5)
    with serving(tmp_path / "log") as address:
        async with connect(f"{scheme}://{address}", None, limit=1) as client:
            await client.warm(1)
            exchange = await client.post(payload)
    assert judge(workload, payload, exchange) == (Outcome.OK, None)
