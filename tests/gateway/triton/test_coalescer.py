"""Coalescing: who travels with whom, what is split back to whom, and what is never sent."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, Unavailable
from gateway.triton.coalescer import Coalescer, PatientCoalescer
from gateway.triton.failures import ModelFailed
from gateway.triton.lanes import lane_key
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
        self.failure: type[GatewayError] = ModelFailed
        self.inside = self.most_inside = 0

    async def infer(self, request: InferenceRequest, deadline_ns: int | None = None) -> InferenceResult:
        self.sent.append(request)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await self.released.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        array = to_numpy(request.inputs[0])
        if self.poison is not None and self.poison in array:
            raise self.failure("the model did not take this request")
        return InferenceResult(request.model, "1", (from_numpy("y", array * 2),))

    @property
    def rows(self) -> list[int]:
        return [request.rows for request in self.sent]

    def executions(self, value: float) -> int:
        """How often a request of this value was sent."""
        return sum(value in to_numpy(request.inputs[0]) for request in self.sent)


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


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it did not come true")


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


@pytest.mark.parametrize("leaving", [1, 2])
async def test_who_goes_as_its_batch_sets_out_is_not_taken_for_the_others(leaving: int) -> None:
    """Of two that waited: one may go and the other is answered; if both go, nothing is sent."""

    class Late(Coalescer):
        async def _send(self, model: Any, lane: Any, batch: Any) -> None:
            if len(batch) == 2:
                for task in waiting[:leaving]:
                    task.cancel()
            await super()._send(model, lane, batch)

    pool = Doubler()
    coalescer = Late(pool, in_flight=1)  # type: ignore[arg-type]
    (first,) = start(coalescer, request(1.0))
    waiting = start(coalescer, request(2.0), request(3.0))
    await settle()
    pool.released.set()
    await first
    await settle()
    assert pool.rows == [1] * (3 - leaving)
    assert [task.cancelled() for task in waiting] == [True, leaving == 2]
    assert leaving == 2 or value(await waiting[1]) == 6.0
    assert value(await coalescer.infer(request(4.0), SIGNATURE)) == 8.0  # and its place is free again


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


WIDE = dataclasses.replace(SIGNATURE, max_batch_size=64)


async def poisoned(coalescer: Coalescer, pool: Doubler, *requests: InferenceRequest) -> list[Any]:
    """What becomes of ``requests``, which travel together behind one that is on its way."""
    first = asyncio.create_task(coalescer.infer(request(0.0), WIDE))
    await settle()
    tasks = [asyncio.create_task(coalescer.infer(each, WIDE)) for each in requests]
    await settle()
    pool.released.set()
    assert value(await first) == 0.0
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("failure", [ModelFailed, Invalid])
@pytest.mark.parametrize("bad", [1, 7, 16])
async def test_one_bad_request_does_not_spoil_its_neighbours(failure: type[GatewayError], bad: int) -> None:
    """It is found by halves: each neighbour is sent a few times more, and never more than one batch at a time."""
    pool = Doubler()
    pool.poison, pool.failure = float(bad), failure
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    results = await poisoned(coalescer, pool, *(request(float(i)) for i in range(1, 17)))
    for number, result in enumerate(results, 1):
        assert isinstance(result, failure) if number == bad else value(result) == 2.0 * number
        assert 2 <= pool.executions(float(number)) <= 1 + 4
    assert len(pool.sent) <= 2 + 2 * 4
    assert pool.most_inside == 1
    assert coalescer.queue_depth["m"] == 0
    assert not any(model.lanes or model.tenants or model.in_flight for model in coalescer._queues.values())


async def test_many_bad_requests_stay_within_what_may_be_in_flight() -> None:
    pool = Doubler()
    pool.poison = 13.0
    coalescer = Coalescer(pool, in_flight=2)  # type: ignore[arg-type]
    results = await poisoned(coalescer, pool, *(request(13.0) for _ in range(40)))
    assert all(isinstance(result, ModelFailed) for result in results)
    assert pool.most_inside == 2


async def test_without_retries_what_failed_once_is_executed_again_for_idempotent_requests_only() -> None:
    pool = Doubler()
    pool.poison = 3.0
    coalescer = Coalescer(pool, in_flight=1, retry=False)  # type: ignore[arg-type]
    results = await poisoned(coalescer, pool, *(request(float(i), idempotent=i > 2) for i in (1, 2, 3, 4, 5)))
    assert [isinstance(result, ModelFailed) for result in results] == [True, True, True, False, False]
    assert [pool.executions(float(i)) for i in (1, 2)] == [1, 1]
    assert [value(result) for result in results[3:]] == [8.0, 10.0]


async def test_without_retries_what_was_refused_is_sent_again_all_the_same() -> None:
    pool = Doubler()
    pool.poison, pool.failure = 2.0, Invalid
    coalescer = Coalescer(pool, in_flight=1, retry=False)  # type: ignore[arg-type]
    results = await poisoned(coalescer, pool, request(1.0), request(2.0), request(3.0))
    assert [isinstance(result, Invalid) for result in results] == [False, True, False]


async def test_a_batch_whose_connection_broke_is_not_sent_again() -> None:
    pool = Doubler()
    pool.poison, pool.failure = 2.0, BadUpstream
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    results = await poisoned(coalescer, pool, *(request(float(i), idempotent=True) for i in (1, 2, 3)))
    assert all(isinstance(result, BadUpstream) for result in results)
    assert pool.executions(1.0) == 1


async def test_who_gives_up_while_a_failed_batch_is_divided_is_not_sent_again() -> None:
    pool = Doubler()
    pool.poison = 9.0
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    first = asyncio.create_task(coalescer.infer(request(0.0), WIDE))
    await settle()
    waiting = [asyncio.create_task(coalescer.infer(request(float(i)), WIDE)) for i in (9, 1, 2, 3)]
    await settle()
    pool.released.set()
    await first
    await until(lambda: pool.executions(3.0) > 0)
    waiting[3].cancel()
    assert [value(await task) for task in waiting[1:3]] == [2.0, 4.0]
    with pytest.raises(ModelFailed):
        await waiting[0]
    assert pool.executions(3.0) == 1
    assert not any(model.lanes or model.waiting for model in coalescer._queues.values())


async def test_cancellation_can_be_switched_off() -> None:
    """What was given to it, waiting or on its way, is ended though its caller has gone."""
    pool = Doubler()
    coalescer = PatientCoalescer(pool, in_flight=1)  # type: ignore[arg-type]
    tasks = start(coalescer, request(1.0), request(2.0))
    await settle()
    for task in tasks:
        task.cancel()
    await settle()
    assert all(task.cancelled() for task in tasks)
    pool.released.set()
    await until(lambda: pool.executions(2.0) > 0 and not pool.inside)
    assert pool.cancelled == 0
    assert pool.executions(1.0) == 1


def test_parameters_that_are_equal_to_python_only_do_not_share() -> None:
    keys = {lane_key(request(1.0, parameters={"p": value})) for value in (1, True, 1.0, "1")}
    assert len(keys) == 4
    assert lane_key(request(1.0, parameters={"p": 1, "q": "a"})) == lane_key(
        request(2.0, parameters={"q": "a", "p": 1})
    )


async def test_lanes_do_not_pile_up() -> None:
    pool = Doubler()
    pool.released.set()
    coalescer = Coalescer(pool, in_flight=1)  # type: ignore[arg-type]
    await asyncio.gather(*start(coalescer, *(request(1.0, width=width) for width in range(1, 60))))
    assert not any(model.lanes or model.tenants for model in coalescer._queues.values())
