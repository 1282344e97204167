"""Who waits how long: tenants in turns, the greediest gives way, and nobody waits for what would be too late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from gateway.errors import DeadlineExceeded, Unavailable
from gateway.triton.coalescer import Coalescer
from gateway.triton.pace import Pace, Paces
from gateway.triton.tensors import to_numpy
from tests.gateway.triton.test_coalescer import SIGNATURE, Doubler, request, settle


def ask(coalescer: Coalescer, tenant: str, values: Sequence[float], rows: int = 1) -> list[asyncio.Task[object]]:
    return [
        asyncio.create_task(coalescer.infer(request(value, rows=rows), SIGNATURE, None, tenant)) for value in values
    ]


def sent(pool: Doubler) -> list[list[float]]:
    return [to_numpy(each.inputs[0])[:, 0].tolist() for each in pool.sent]


async def test_tenants_take_turns_whoever_came_first() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = [*ask(coalescer, "hot", [float(i) for i in range(10)]), *ask(coalescer, "cold", [100.0, 101.0])]
    tasks += ask(coalescer, "other", [200.0])
    await settle()
    pool.released.set()
    await asyncio.gather(*tasks)
    assert sent(pool) == [[0.0], [1.0, 100.0, 200.0, 2.0], [101.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0]]
    assert coalescer.queue_depth["m"] == 0
    assert not any(model.lanes or model.tenants for model in coalescer._queues.values())


async def test_turns_are_counted_in_rows() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = [*ask(coalescer, "first", [0.0]), *ask(coalescer, "big", [1.0, 2.0, 3.0], rows=4)]
    tasks += ask(coalescer, "small", [10.0, 11.0, 12.0, 13.0, 14.0])
    await settle()
    pool.released.set()
    await asyncio.gather(*tasks)
    assert [batch[0] for batch in sent(pool)] == [0.0, 1.0, 10.0, 2.0, 14.0, 3.0]
    assert sent(pool)[2] == [10.0, 11.0, 12.0, 13.0]


async def test_who_comes_late_does_not_make_up_for_what_it_never_asked_for() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = ask(coalescer, "a", [float(i) for i in range(30)])
    await settle()
    pool.released.set()
    for _ in range(1000):
        if len(pool.sent) >= 4:
            break
        await asyncio.sleep(0)
    pool.released.clear()
    await settle()
    await settle()
    served = len([value for batch in sent(pool) for value in batch])
    tasks += ask(coalescer, "b", [100.0 + i for i in range(10)])
    await settle()
    pool.released.set()
    await asyncio.gather(*tasks)
    following = [value for batch in sent(pool) for value in batch][served : served + 8]
    assert sum(value >= 100 for value in following) in {3, 4, 5}


async def test_a_full_queue_takes_from_the_greediest_its_newest() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1, max_queue=4)  # type: ignore[arg-type]
    hot = ask(coalescer, "hot", [float(i) for i in range(5)])
    await settle()
    (cold,) = ask(coalescer, "cold", [100.0])
    await settle()
    assert hot[4].done()
    assert isinstance(hot[4].exception(), Unavailable)
    assert coalescer.queue_depth["m"] == 4
    with pytest.raises(Unavailable):
        await coalescer.infer(request(9.0), SIGNATURE, None, "hot")
    assert coalescer.shed["m"] == 2
    pool.released.set()
    await asyncio.gather(*hot[:4], cold)
    assert sent(pool) == [[0.0], [1.0, 100.0, 2.0, 3.0]]
    assert coalescer.queue_depth["m"] == 0


async def test_requests_of_many_shapes_get_no_more_turns_than_of_one() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    hot = [
        asyncio.create_task(coalescer.infer(request(float(width), width=width), SIGNATURE, None, "hot"))
        for width in (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)
    ]
    await settle()
    pool.released.set()
    for _ in range(1000):
        if len(pool.sent) >= 3:
            break
        await asyncio.sleep(0)
    pool.released.clear()
    await settle()
    before = len(pool.sent)
    cold = ask(coalescer, "cold", [100.0])
    await settle()
    pool.released.set()
    await asyncio.gather(*hot, *cold)
    position = next(i for i, batch in enumerate(sent(pool)) if 100.0 in batch)
    assert position <= before + 1  # though every one of hot's shapes was there before


async def test_a_request_that_would_be_too_late_is_refused_when_it_arrives() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    await teach(coalescer, pool, 0.1)
    tasks = ask(coalescer, "a", [float(i) for i in range(9)])  # one in flight, two batches of four behind it
    await settle()
    soon, late = time.monotonic_ns() + int(0.2e9), time.monotonic_ns() + int(60e9)
    with pytest.raises(Unavailable) as caught:
        await coalescer.infer(request(1.0), SIGNATURE, soon, "a")
    assert caught.value.retry_after_s is not None
    patient = asyncio.create_task(coalescer.infer(request(50.0), SIGNATURE, late, "a"))
    other = asyncio.create_task(coalescer.infer(request(60.0), SIGNATURE, time.monotonic_ns() + int(2e9), "b"))
    await settle()
    assert not patient.done()
    assert not other.done()
    pool.released.set()
    await asyncio.gather(*tasks, patient, other)
    assert 60.0 in sent(pool)[-3]  # it did not wait behind all of a's


async def test_switched_off_it_waits_and_misses_its_deadline() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1, shed=False)  # type: ignore[arg-type]
    await teach(coalescer, pool, 0.1)
    tasks = ask(coalescer, "a", [float(i) for i in range(9)])
    await settle()
    with pytest.raises(DeadlineExceeded):
        await coalescer.infer(request(1.0), SIGNATURE, time.monotonic_ns() + int(0.05e9), "a")
    assert coalescer.queue_depth["m"] == 8  # given up, it stands in nobody's way
    pool.released.set()
    await asyncio.gather(*tasks)


async def teach(coalescer: Coalescer, pool: Doubler, seconds: float) -> None:
    """Let it see what a batch takes."""
    task = asyncio.create_task(coalescer.infer(request(0.0), SIGNATURE, None, "a"))
    await asyncio.sleep(seconds)
    pool.released.set()
    await task
    pool.released.clear()
    pool.sent.clear()


def test_a_pace_knows_batches_by_size_and_hopes_where_it_knows_nothing() -> None:
    pace = Pace()
    assert pace.wait(1000, 8, 2) == 0.0
    pace.batch(1, 0.010)
    assert pace.wait(0, 8, 2) == pytest.approx(0.015)
    pace.batch(8, 0.040)
    assert pace.wait(16, 8, 2) == pytest.approx((2 * 0.040 + 0.010) / 2 + 0.010)
    for _ in range(60):
        pace.batch(8, 0.080)
    assert pace.wait(16, 8, 2) == pytest.approx((2 * 0.080 + 0.010) / 2 + 0.010, rel=0.01)


def test_a_pace_of_what_queues_in_triton() -> None:
    pace = Pace()
    for _ in range(3):
        pace.entered()
    assert pace.sojourn() == 0.0  # nothing was measured yet
    pace.left(1.0, answered=True)
    pace.left(1.5, answered=True)
    assert pace.sojourn() == pytest.approx(1.0)  # one before it, half a second each
    pace.left(1.6, answered=False)
    assert pace.sojourn() == 0.0  # an idle model is always asked: it may have become faster


def test_paces_are_forgotten_in_the_order_of_their_use() -> None:
    paces = Paces()
    first = paces.of(0)
    for key in range(1, 1024):
        paces.of(key)
    assert paces.of(0) is first
    second = paces.of(1)
    paces.of("one more")
    assert paces.of(0) is first
    assert paces.of(1) is second
    assert paces.of("another") is not None
