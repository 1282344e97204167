"""Requests for one model and shape that arrive while earlier ones are in flight travel to Triton
together, as one request, and are split again on return. Nothing waits on a timer: when the model is
idle a request is sent at once.

Tenants that wait for the same model are served in turns, row by row, so that a tenant with many
requests delays its own. A request that would wait past its deadline is refused when it arrives: work
that nobody waits for any more is what makes an overloaded server collapse.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, Unavailable
from gateway.triton.failures import ModelFailed
from gateway.triton.pace import Pace, Paces
from gateway.triton.pool import Pool
from gateway.triton.signature import Signature
from gateway.triton.tensors import join_rows, split_rows
from gateway.types import InferenceRequest, InferenceResult

LaneKey = tuple[object, ...]

_FILL = 0.5
"""Of the time to the deadline that a queue may take. A queue that is filled to the brim makes every request late
when the model becomes slower for a moment; half of it keeps the model as busy.
"""


class _Waiting(msgspec.Struct, eq=False):
    request: InferenceRequest
    deadline_ns: int | None
    future: asyncio.Future[InferenceResult]
    queued: bool = True
    """Counted in its lane; no longer once it is sent or given up."""

    @property
    def gone(self) -> bool:
        """Its client went away, or its deadline passed: no work is done for it."""
        return self.future.done()


@dataclass(slots=True, eq=False)
class _Share:
    """What one tenant has waiting in a lane; ``turn`` is the virtual time of its next request."""

    tenant: str
    turn: float
    rows: int = 0
    waiting: deque[_Waiting] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _Lane:
    """Requests that may share a batch."""

    key: LaneKey
    max_rows: int
    pace: Pace
    in_flight: int = 0
    waiting: int = 0
    """Requests."""
    rows: int = 0
    clock: float = 0.0
    """Virtual time: rows that everybody who waits has been served."""
    shares: dict[str, _Share] = field(default_factory=dict)
    turns: list[tuple[float, int, _Share]] = field(default_factory=list)
    """A heap of the shares, whose turn is next first."""


class Coalescer:
    """The way to the pool. ``on_batch(model, requests, rows)`` is called for every Triton request."""

    def __init__(
        self,
        pool: Pool,
        *,
        enabled: bool = True,
        in_flight: int = 2,
        max_queue: int = 2048,
        shed: bool = True,
        on_batch: Callable[[str, int, int], None] = lambda _model, _requests, _rows: None,
    ) -> None:
        self._pool = pool
        self._enabled = enabled
        self._in_flight = in_flight
        self._max_queue = max_queue
        self._shed = shed
        self._on_batch = on_batch
        self._lanes: dict[LaneKey, _Lane] = {}
        self._paces = Paces()
        self._order = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self.queue_depth: dict[str, int] = {}
        """Requests waiting, by model."""
        self.shed: dict[str, int] = {}
        """Requests refused because the queue was full or too long for their deadline, by model."""

    async def infer(
        self, request: InferenceRequest, signature: Signature, deadline_ns: int | None = None, tenant: str = ""
    ) -> InferenceResult:
        """Run ``request``, alone or with others. Raises a :class:`~gateway.errors.GatewayError`."""
        if not (self._enabled and signature.coalescible):
            return await self._infer_alone(request, deadline_ns)
        key = _lane_key(request)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, signature.max_batch_size, self._paces.of(key))
        if lane.in_flight < self._in_flight and not lane.waiting:
            lane.in_flight += 1
            begin = time.monotonic()
            try:
                self._on_batch(request.model, 1, request.rows)
                result = await self._pool.infer(request, deadline_ns)
                lane.pace.batch(request.rows, time.monotonic() - begin)
                return result
            finally:
                self._landed(lane)
        return await self._wait(lane, request, deadline_ns, tenant)

    def check(self, request: InferenceRequest, signature: Signature, deadline_ns: int | None, tenant: str = "") -> None:
        """Raise the ``Unavailable`` that :meth:`infer` would for a request that would be too late; takes nothing."""
        if not (self._enabled and signature.coalescible):
            self._check_alone(request.model, deadline_ns)
            return
        lane = self._lanes.get(_lane_key(request)) if self.queue_depth.get(request.model) else None
        if lane is not None and lane.waiting:
            self._check_wait(lane, request, deadline_ns, tenant)

    def _check_alone(self, model: str, deadline_ns: int | None) -> None:
        wait = self._paces.of((model,)).sojourn()
        if self._shed and deadline_ns is not None and wait > _remaining(deadline_ns):
            raise self._refuse(model, wait)

    async def _infer_alone(self, request: InferenceRequest, deadline_ns: int | None) -> InferenceResult:
        """Triton queues what cannot be coalesced; what would be late there is not sent."""
        self._check_alone(request.model, deadline_ns)
        pace = self._paces.of((request.model,))
        self._on_batch(request.model, 1, request.rows)
        pace.entered()
        answered = False
        try:
            result = await self._pool.infer(request, deadline_ns)
            answered = True
            return result
        finally:
            pace.left(time.monotonic(), answered=answered)

    async def _wait(
        self, lane: _Lane, request: InferenceRequest, deadline_ns: int | None, tenant: str
    ) -> InferenceResult:
        self._check_wait(lane, request, deadline_ns, tenant)
        if self.queue_depth.get(request.model, 0) >= self._max_queue:
            self._make_room(request.model, tenant)
        loop = asyncio.get_running_loop()
        entry = _Waiting(request, deadline_ns, loop.create_future())
        timer = None
        if deadline_ns is not None:
            timer = loop.call_later(max(0.0, _remaining(deadline_ns)), _expire, entry)
        share = lane.shares.get(tenant)
        if share is None:
            share = lane.shares[tenant] = _Share(tenant, lane.clock)
            heapq.heappush(lane.turns, (share.turn, next(self._order), share))
        share.waiting.append(entry)
        share.rows += request.rows
        lane.rows += request.rows
        lane.waiting += 1
        self.queue_depth[request.model] = self.queue_depth.get(request.model, 0) + 1
        try:
            return await entry.future
        finally:
            if timer is not None:
                timer.cancel()
            if entry.queued:  # given up: nobody waits behind it any more
                self._unqueue(lane, share, entry)

    def _check_wait(self, lane: _Lane, request: InferenceRequest, deadline_ns: int | None, tenant: str) -> None:
        """Refuse a request that would be late: what waits before it, at the pace of the lane."""
        if not self._shed or deadline_ns is None:
            return
        share = lane.shares.get(tenant)
        own = (share.rows if share is not None else 0) + request.rows
        ahead = min(lane.rows, own * (len(lane.shares) + (share is None)))  # by turns, of others no more than of it
        wait, remaining = lane.pace.wait(ahead, lane.max_rows, self._in_flight), _remaining(deadline_ns)
        if wait > remaining or (wait > remaining * _FILL and ahead > lane.max_rows * self._in_flight):
            raise self._refuse(request.model, wait)

    def _make_room(self, model: str, tenant: str) -> None:
        """The newest request of who has most waiting gives way, unless that is ``tenant`` itself."""
        shares = [
            (lane, share) for lane in self._lanes.values() if lane.key[0] == model for share in lane.shares.values()
        ]
        waiting: dict[str, int] = {}
        for _, share in shares:
            waiting[share.tenant] = waiting.get(share.tenant, 0) + len(share.waiting)
        greediest = max(waiting, key=lambda name: waiting[name], default=tenant)
        if greediest == tenant or waiting[greediest] <= waiting.get(tenant, 0) + 1:
            raise self._refuse(model, 1.0)
        lane, share = max(
            (pair for pair in shares if pair[1].tenant == greediest), key=lambda pair: len(pair[1].waiting)
        )
        for entry in reversed(share.waiting):
            if not entry.gone:
                self._unqueue(lane, share, entry)
                entry.future.set_exception(self._refuse(model, 1.0))
                return

    def _refuse(self, model: str, wait_s: float) -> Unavailable:
        self.shed[model] = self.shed.get(model, 0) + 1
        retry_after_s = min(30.0, max(1.0, wait_s)) * random.uniform(1.0, 1.5)  # noqa: S311
        return Unavailable("the model's queue is full", retry_after_s=retry_after_s)

    def _unqueue(self, lane: _Lane, share: _Share, entry: _Waiting) -> None:
        entry.queued = False
        share.rows -= entry.request.rows
        lane.rows -= entry.request.rows
        lane.waiting -= 1
        self.queue_depth[entry.request.model] -= 1

    def _landed(self, lane: _Lane) -> None:
        """A Triton request of ``lane`` ended: send what has gathered meanwhile."""
        lane.in_flight -= 1
        while lane.turns and lane.in_flight < self._in_flight:
            batch = self._take(lane)
            if batch:
                lane.in_flight += 1
                task = asyncio.create_task(self._send(lane, batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if lane.in_flight == 0 and not lane.turns:
            self._lanes.pop(lane.key, None)

    def _take(self, lane: _Lane) -> list[_Waiting]:
        """The next batch, tenants in turns: whoever has been served the fewest rows is next."""
        batch: list[_Waiting] = []
        rows = 0
        while lane.turns:
            turn, _, share = lane.turns[0]
            entry = share.waiting[0]
            if not entry.gone and batch and rows + entry.request.rows > lane.max_rows:
                break
            share.waiting.popleft()
            if entry.queued:
                self._unqueue(lane, share, entry)
            if not entry.gone:
                batch.append(entry)
                rows += entry.request.rows
                lane.clock = turn
                share.turn += entry.request.rows
            if not share.waiting:
                heapq.heappop(lane.turns)
                del lane.shares[share.tenant]
            elif share.turn > turn:
                heapq.heapreplace(lane.turns, (share.turn, next(self._order), share))
        return batch

    async def _send(self, lane: _Lane, batch: list[_Waiting]) -> None:
        try:
            results = await self._run(lane, batch)
        except (ModelFailed, Invalid) as error:
            # The model refused the batch, so none of it was answered; one request must not spoil
            # its neighbours' answers: each is tried alone.
            if len(batch) == 1:
                _fail(batch, error)
            else:
                await asyncio.gather(*(self._send_alone(lane, entry) for entry in batch))
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

    async def _send_alone(self, lane: _Lane, entry: _Waiting) -> None:
        try:
            (result,) = await self._run(lane, [entry])
        except GatewayError as error:
            _fail([entry], error)
        else:
            if not entry.gone:
                entry.future.set_result(result)

    async def _run(self, lane: _Lane, batch: list[_Waiting]) -> list[InferenceResult]:
        deadlines = [entry.deadline_ns for entry in batch]
        latest = None if None in deadlines else max(deadline for deadline in deadlines if deadline is not None)
        request = _join([entry.request for entry in batch])
        self._on_batch(request.model, len(batch), request.rows)
        begin = time.monotonic()
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
        lane.pace.batch(request.rows, time.monotonic() - begin)
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
        tuple([(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in request.inputs]),
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
        trace=next((request.trace for request in requests if request.trace), ()),
        idempotent=all(request.idempotent for request in requests),
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


def _remaining(deadline_ns: int) -> float:
    return (deadline_ns - time.monotonic_ns()) / 1e9


def _expire(entry: _Waiting) -> None:
    if not entry.future.done():
        entry.future.set_exception(DeadlineExceeded("the deadline passed before the model answered"))


def _fail(batch: list[_Waiting], error: GatewayError) -> None:
    for entry in batch:
        if not entry.gone:
            entry.future.set_exception(error)
