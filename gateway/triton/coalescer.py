"""Requests for one model and shape that arrive while earlier ones are in flight travel to Triton
together, as one request, and are split again on return. Nothing waits on a timer: when the model is
idle a request is sent at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, Unavailable
from gateway.triton.client import ModelFailed
from gateway.triton.pool import Pool
from gateway.triton.signature import Signature
from gateway.triton.tensors import join_rows, split_rows
from gateway.types import InferenceRequest, InferenceResult

LaneKey = tuple[object, ...]


@dataclass(slots=True, eq=False)
class _Waiting:
    request: InferenceRequest
    deadline_ns: int | None
    future: asyncio.Future[InferenceResult]

    @property
    def gone(self) -> bool:
        """Its client went away, or its deadline passed: no work is done for it."""
        return self.future.done()


@dataclass(slots=True, eq=False)
class _Lane:
    """Requests that may share a batch."""

    key: LaneKey
    max_rows: int
    in_flight: int = 0
    waiting: deque[_Waiting] = field(default_factory=deque)


class Coalescer:
    """The way to the pool. ``on_batch(model, requests, rows)`` is called for every Triton request."""

    def __init__(
        self,
        pool: Pool,
        *,
        enabled: bool = True,
        in_flight: int = 2,
        max_queue: int = 2048,
        on_batch: Callable[[str, int, int], None] = lambda _model, _requests, _rows: None,
    ) -> None:
        self._pool = pool
        self._enabled = enabled
        self._in_flight = in_flight
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._lanes: dict[LaneKey, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.queue_depth: dict[str, int] = {}
        """Requests waiting, by model."""

    async def infer(
        self, request: InferenceRequest, signature: Signature, deadline_ns: int | None = None
    ) -> InferenceResult:
        """Run ``request``, alone or with others. Raises a :class:`~gateway.errors.GatewayError`."""
        if not (self._enabled and signature.coalescible):
            self._on_batch(request.model, 1, request.rows)
            return await self._pool.infer(request, deadline_ns)
        key = _lane_key(request)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, signature.max_batch_size)
        if lane.in_flight < self._in_flight and not lane.waiting:
            lane.in_flight += 1
            try:
                self._on_batch(request.model, 1, request.rows)
                return await self._pool.infer(request, deadline_ns)
            finally:
                self._landed(lane)
        return await self._wait(lane, request, deadline_ns)

    async def _wait(self, lane: _Lane, request: InferenceRequest, deadline_ns: int | None) -> InferenceResult:
        depth = self.queue_depth.get(request.model, 0)
        if depth >= self._max_queue:
            raise Unavailable("the model's queue is full", retry_after_s=1.0)
        self.queue_depth[request.model] = depth + 1
        loop = asyncio.get_running_loop()
        entry = _Waiting(request, deadline_ns, loop.create_future())
        timer = None
        if deadline_ns is not None:
            timer = loop.call_later(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9), _expire, entry)
        lane.waiting.append(entry)
        try:
            return await entry.future
        finally:
            if timer is not None:
                timer.cancel()

    def _landed(self, lane: _Lane) -> None:
        """A Triton request of ``lane`` ended: send what has gathered meanwhile."""
        lane.in_flight -= 1
        while lane.waiting and lane.in_flight < self._in_flight:
            batch = self._take(lane)
            if batch:
                lane.in_flight += 1
                task = asyncio.create_task(self._send(lane, batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if lane.in_flight == 0 and not lane.waiting:
            self._lanes.pop(lane.key, None)

    def _take(self, lane: _Lane) -> list[_Waiting]:
        batch: list[_Waiting] = []
        rows = 0
        while lane.waiting:
            entry = lane.waiting[0]
            if not entry.gone and batch and rows + entry.request.rows > lane.max_rows:
                break
            lane.waiting.popleft()
            self.queue_depth[entry.request.model] -= 1
            if not entry.gone:
                batch.append(entry)
                rows += entry.request.rows
        return batch

    async def _send(self, lane: _Lane, batch: list[_Waiting]) -> None:
        try:
            results = await self._run(batch)
        except (ModelFailed, Invalid) as error:
            # The model refused the batch, so none of it was answered; one request must not spoil
            # its neighbours' answers: each is tried alone.
            if len(batch) == 1:
                _fail(batch, error)
            else:
                await asyncio.gather(*(self._send_alone(entry) for entry in batch))
        except GatewayError as error:
            _fail(batch, error)
        except asyncio.CancelledError:
            _fail(batch, Unavailable("the gateway is shutting down", retry_after_s=1.0))
            raise
        else:
            for entry, result in zip(batch, results, strict=True):
                if not entry.gone:
                    entry.future.set_result(result)
        finally:
            self._landed(lane)

    async def _send_alone(self, entry: _Waiting) -> None:
        try:
            (result,) = await self._run([entry])
        except GatewayError as error:
            _fail([entry], error)
        else:
            if not entry.gone:
                entry.future.set_result(result)

    async def _run(self, batch: list[_Waiting]) -> list[InferenceResult]:
        deadlines = [entry.deadline_ns for entry in batch]
        latest = None if None in deadlines else max(deadline for deadline in deadlines if deadline is not None)
        request = _join([entry.request for entry in batch])
        self._on_batch(request.model, len(batch), request.rows)
        call = asyncio.ensure_future(self._pool.infer(request, latest))
        left = sum(not entry.gone for entry in batch)

        def one_less(_future: asyncio.Future[InferenceResult]) -> None:
            nonlocal left
            left -= 1
            if left == 0 and not call.done():
                call.cancel()

        for entry in batch:
            entry.future.add_done_callback(one_less)
        try:
            result = await call
        except asyncio.CancelledError:
            if left:
                raise
            raise DeadlineExceeded("every client of this batch has gone") from None
        finally:
            for entry in batch:
                entry.future.remove_done_callback(one_less)
        return _split(result, [entry.request for entry in batch])

    async def close(self) -> None:
        """Cancel what is in flight; waiting requests get 503."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _lane_key(request: InferenceRequest) -> LaneKey:
    return (
        request.model,
        request.version,
        request.priority,
        request.outputs,
        tuple(sorted(request.parameters.items())) if request.parameters else (),
        tuple((tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in request.inputs),
    )


def _join(requests: list[InferenceRequest]) -> InferenceRequest:
    first = requests[0]
    if len(requests) == 1:
        return first
    columns = zip(*(request.inputs for request in requests), strict=True)
    return InferenceRequest(
        model=first.model,
        version=first.version,
        inputs=tuple(join_rows(column) for column in columns),
        outputs=first.outputs,
        parameters=first.parameters,
        priority=first.priority,
    )


def _split(result: InferenceResult, requests: list[InferenceRequest]) -> list[InferenceResult]:
    if len(requests) == 1:
        return [result]
    rows = [request.rows for request in requests]
    try:
        columns = [split_rows(output, rows) for output in result.outputs]
    except ValueError as error:
        raise BadUpstream("the model answered with another number of rows than it was asked") from error
    return [
        InferenceResult(
            result.model, result.version, tuple(column[i] for column in columns), request.id, result.parameters
        )
        for i, request in enumerate(requests)
    ]


def _expire(entry: _Waiting) -> None:
    if not entry.future.done():
        entry.future.set_exception(DeadlineExceeded("the deadline passed before the model answered"))


def _fail(batch: list[_Waiting], error: GatewayError) -> None:
    for entry in batch:
        if not entry.gone:
            entry.future.set_exception(error)
