"""Coalescing: who travels with whom, what is split back to whom, and what is never sent."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from gateway.errors import DeadlineExceeded, Unavailable
from gateway.triton.coalescer import Coalescer
from gateway.triton.failures import ModelFailed
from gateway.triton.signature import Signature, TensorSignature
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceRequest, InferenceResult


class Doubler:
    """Stands where the pool stands: answers twice the input once it is released."""

    def __init__(self) -> None:
        self.sent: list[InferenceRequest] = []
        self.cancelled = 0
        self.released = asyncio.Event()
        self.poison: float | None = None

    async def infer(self, request: InferenceRequest, deadline_ns: int | None = None) -> InferenceResult:
        self.sent.append(request)
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        array = to_numpy(request.inputs[0])
        if self.poison is not None and self.poison in array:
            raise ModelFailed("the model failed on this request")
        return InferenceResult(request.model, "1", (from_numpy("y", array * 2),))

    @property
    def rows(self) -> list[int]:
        return [request.rows for request in self.sent]


SIGNATURE = Signature(
    "m", {"x": TensorSignature("x", "FP32", (-1, -1))}, {"y": TensorSignature("y", "FP32", (-1, -1))}, 4, True
)


def request(value: float, rows: int = 1, width: int = 2, **more: Any) -> InferenceRequest:
    return InferenceRequest("m", (from_numpy("x", np.full((rows, width), value, dtype=np.float32)),), **more)


def start(
    coalescer: Coalescer, *requests: InferenceRequest, deadline_s: float | None = None
) -> list[asyncio.Task[Any]]:
    deadline = None if deadline_s is None else time.monotonic_ns() + int(deadline_s * 1e9)
    return [asyncio.create_task(coalescer.infer(each, SIGNATURE, deadline)) for each in requests]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def value(result: InferenceResult) -> float:
    return float(to_numpy(result.outputs[0])[0, 0])


async def test_an_idle_model_is_asked_at_once_and_waiting_requests_travel_together() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = start(coalescer, *(request(float(i)) for i in range(6)))
    await settle()
    assert pool.rows == [1]
    assert coalescer.queue_depth["m"] == 5
    pool.released.set()
    results = await asyncio.gather(*tasks)
    assert pool.rows == [1, 4, 1]  # at most max_batch_size rows
    assert [value(result) for result in results] == [2.0 * i for i in range(6)]
    assert coalescer.queue_depth["m"] == 0


async def test_each_gets_its_own_rows_back() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = start(coalescer, request(9.0), request(1.0, rows=2), request(2.0, rows=1), request(3.0, rows=3))
    await settle()
    pool.released.set()
    results = await asyncio.gather(*tasks)
    assert [to_numpy(result.outputs[0]).shape for result in results] == [(1, 2), (2, 2), (1, 2), (3, 2)]
    assert [value(result) for result in results] == [18.0, 2.0, 4.0, 6.0]
    assert pool.rows == [1, 3, 3]


async def test_other_shapes_priorities_versions_and_outputs_do_not_share() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    others = [request(1.0, width=3), request(1.0, priority=1), request(1.0, version="2"), request(1.0, outputs=("y",))]
    tasks = start(coalescer, request(1.0), *others)
    await settle()
    assert pool.rows == [1]
    pool.released.set()
    await asyncio.gather(*tasks)
    assert pool.rows == [1] * 5


async def test_all_shapes_of_a_model_share_what_may_be_in_flight() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=2)  # type: ignore[arg-type]
    tasks = start(coalescer, *(request(1.0, width=width) for width in (1, 2, 3, 1, 2, 3, 1, 2, 3)))
    await settle()
    assert pool.rows == [1, 1]  # with more, they would gather in Triton's queue, where lengths do not mix
    pool.released.set()
    await asyncio.gather(*tasks)
    assert sorted(pool.rows) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(("servers", "instances", "expected"), [(1, 1, 2), (3, 1, 6), (1, 3, 4), (2, 2, 6), (0, 1, 2)])
async def test_more_servers_and_instances_take_more(servers: int, instances: int, expected: int) -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=2, servers=lambda _model: servers)  # type: ignore[arg-type]
    signature = dataclasses.replace(SIGNATURE, instances=instances)
    tasks = [asyncio.create_task(coalescer.infer(request(1.0), signature)) for _ in range(20)]
    await settle()
    assert len(pool.sent) == expected
    pool.released.set()
    await asyncio.gather(*tasks)


async def test_a_higher_priority_goes_first() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = start(coalescer, request(0.0), *(request(float(i), priority=p) for i, p in enumerate((0, 2, 1, 2, 0), 1)))
    await settle()
    pool.released.set()
    await asyncio.gather(*tasks)
    assert [sent.priority for sent in pool.sent] == [0, 1, 2, 0]


async def test_switched_off_every_request_travels_alone() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, enabled=False)  # type: ignore[arg-type]
    tasks = start(coalescer, *(request(1.0) for _ in range(8)))
    await settle()
    pool.released.set()
    await asyncio.gather(*tasks)
    assert pool.rows == [1] * 8


async def test_work_for_clients_that_have_gone_is_not_sent() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    first, second, third = start(coalescer, request(1.0), request(2.0), request(3.0))
    await settle()
    second.cancel()
    await settle()
    pool.released.set()
    assert value(await third) == 6.0
    await first
    assert pool.rows == [1, 1]
    assert second.cancelled()


async def test_when_every_client_of_a_batch_has_gone_the_upstream_call_is_cancelled() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    (first,) = start(coalescer, request(1.0))
    waiting = start(coalescer, request(2.0), request(3.0))
    await settle()
    pool.released.set()
    await first
    pool.released.clear()
    await settle()
    assert pool.rows == [1, 2]
    for task in waiting:
        task.cancel()
    await settle()
    assert pool.cancelled == 1


async def test_a_deadline_that_passes_in_the_queue_answers_then() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    (first,) = start(coalescer, request(1.0))
    (late,) = start(coalescer, request(2.0), deadline_s=0.01)
    with pytest.raises(DeadlineExceeded):
        await late
    pool.released.set()
    await first
    assert pool.rows == [1]


async def test_a_full_queue_sheds_at_once() -> None:
    pool = Doubler()
    coalescer = Coalescer(pool, in_flight=1, max_queue=2)  # type: ignore[arg-type]
    tasks = start(coalescer, *(request(1.0) for _ in range(3)))
    await settle()
    with pytest.raises(Unavailable) as caught:
        await coalescer.infer(request(1.0), SIGNATURE)
    assert caught.value.retry_after_s is not None
    pool.released.set()
    await asyncio.gather(*tasks)


async def test_one_bad_request_does_not_spoil_its_neighbours() -> None:
    pool = Doubler()
    pool.poison = 13.0
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = start(coalescer, request(0.0), request(1.0), request(13.0), request(2.0))
    await settle()
    pool.released.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], ModelFailed)
    assert [value(results[i]) for i in (0, 1, 3)] == [0.0, 2.0, 4.0]  # type: ignore[arg-type]


async def test_lanes_do_not_pile_up() -> None:
    pool = Doubler()
    pool.released.set()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    await asyncio.gather(*start(coalescer, *(request(1.0, width=width) for width in range(1, 60))))
    assert not any(model.lanes or model.tenants for model in coalescer._queues.values())
