"""Threads for pictures: what would be prepared too late is refused, or not begun."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.errors import DeadlineExceeded, Unavailable
from gateway.tasks.workers import Workers


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def within(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


async def test_work_is_done_and_its_errors_are_its_own(executor: ThreadPoolExecutor) -> None:
    workers = Workers(executor, 1)
    assert await workers.run(lambda: 7, within(10)) == 7
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 // 0, None)


async def test_a_queue_that_is_too_long_refuses_when_work_arrives(executor: ThreadPoolExecutor) -> None:
    workers = Workers(executor, 1)
    await workers.run(lambda: time.sleep(0.2), None)
    gate = threading.Event()
    waiting = [asyncio.create_task(workers.run(gate.wait, None)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as caught:
        await workers.run(gate.wait, within(0.5))
    assert caught.value.retry_after_s is not None
    patient = asyncio.create_task(workers.run(gate.wait, within(60)))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*waiting, patient)


async def test_what_is_late_is_not_begun(executor: ThreadPoolExecutor) -> None:
    workers = Workers(executor, 1, shed=False)
    begun = []
    gate = threading.Event()
    first = asyncio.create_task(workers.run(gate.wait, None))
    late = asyncio.create_task(workers.run(lambda: begun.append(1), within(0.02)))
    await asyncio.sleep(0.05)
    gate.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    assert not begun
