"""Requests for one model and shape that arrive while earlier ones are in flight travel to Triton
together, as one request, and are split again on return. Nothing waits on a timer: when the model is
idle a request is sent at once.

Tenants that wait for the same model are served in turns, row by row, so that a tenant with many
requests delays its own. A request that would wait past its deadline is refused when it arrives: work
that nobody waits for any more is what makes an overloaded server collapse.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, Unavailable
from gateway.triton.failures import ModelFailed
from gateway.triton.lanes import Lane, LaneKey, ModelQueue, Waiting, lane_key, rank_of
from gateway.triton.pace import Paces
from gateway.triton.pool import Pool
from gateway.triton.signature import Signature
from gateway.triton.tensors import join_rows, split_rows
from gateway.types import InferenceRequest, InferenceResult

_FILL = 0.5
"""Of the time to the deadline that a queue may take. A queue that is filled to the brim makes every request late
when the model becomes slower for a moment; half of it keeps the model as busy.
"""


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
        retry: bool = True,
        on_batch: Callable[[str, int, int], None] = lambda _model, _requests, _rows: None,
        servers: Callable[[str], int] = lambda _model: 1,
    ) -> None:
        """``in_flight`` Triton requests for a model of one instance on each of its ``servers(model)``, and one more
        for every further instance. ``retry``: execute the requests of a batch that the model failed on again, in
        smaller batches, until the one that it fails on is alone; without it only those that are idempotent.
        """
        self._pool = pool
        self._enabled = enabled
        self._in_flight = in_flight
        self._max_queue = max_queue
        self._shed = shed
        self._retry = retry
        self._on_batch = on_batch
        self._servers = servers
        self._queues: dict[str, ModelQueue] = {}
        self._paces = Paces()
        self._parts = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.shed: dict[str, int] = {}
        """Requests refused because the queue was full or too long for their deadline, by model."""

    async def infer(
        self, request: InferenceRequest, signature: Signature, deadline_ns: int | None = None, tenant: str = ""
    ) -> InferenceResult:
        """Run ``request``, alone or with others. Raises a :class:`~gateway.errors.GatewayError`."""
        if not (self._enabled and signature.coalescible):
            return await self._infer_alone(request, deadline_ns)
        model = self._queues.get(request.model)
        if model is None:
            model = self._queues[request.model] = ModelQueue(request.model)
        begin = time.monotonic()
        model.limit = max(1, self._servers(request.model)) * (self._in_flight - 1 + signature.instances)
        key = lane_key(request)
        if model.in_flight >= model.limit or model.lanes:
            return await self._wait(model, key, request, signature, deadline_ns, tenant)
        model.in_flight += 1
        try:
            self._on_batch(request.model, 1, request.rows)
            result = await self._pool.infer(request, deadline_ns)
            self._paces.of(key).batch(request.rows, time.monotonic() - begin)
            return result
        finally:
            self._landed(model)

    @property
    def queue_depth(self) -> dict[str, int]:
        """Requests waiting, by model."""
        return {name: model.waiting for name, model in self._queues.items()}

    def check(self, request: InferenceRequest, signature: Signature, deadline_ns: int | None, tenant: str = "") -> None:
        """Raise the ``Unavailable`` that :meth:`infer` would for a request that would be too late; takes nothing."""
        if not (self._enabled and signature.coalescible):
            self._check_alone(request.model, deadline_ns)
            return
        model = self._queues.get(request.model)
        if model is not None and model.lanes:
            self._check_wait(model, lane_key(request), request, signature, deadline_ns, tenant)

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
            result = await self._pool.infer(replace(request, queues=True), deadline_ns)
            answered = True
            return result
        finally:
            pace.left(time.monotonic(), answered=answered)

    async def _wait(
        self,
        model: ModelQueue,
        key: LaneKey,
        request: InferenceRequest,
        signature: Signature,
        deadline_ns: int | None,
        tenant: str,
    ) -> InferenceResult:
        self._check_wait(model, key, request, signature, deadline_ns, tenant)
        if model.waiting >= self._max_queue:
            self._make_room(model, tenant)
        lane = model.lanes.get(key)
        if lane is None:
            lane = model.lanes[key] = Lane(key, signature.max_batch_size, self._paces.of(key))
        loop = asyncio.get_running_loop()
        entry = Waiting(request, deadline_ns, loop.create_future(), tenant)
        timer = None
        if deadline_ns is not None:
            timer = loop.call_later(max(0.0, _remaining(deadline_ns)), _expire, entry)
        model.put(lane, entry)
        try:
            return await entry.future
        finally:
            if timer is not None:
                timer.cancel()
            model.unqueue(entry)  # if it was given up: nobody waits behind it any more

    def _check_wait(
        self,
        model: ModelQueue,
        key: LaneKey,
        request: InferenceRequest,
        signature: Signature,
        deadline_ns: int | None,
        tenant: str,
    ) -> None:
        """Refuse a request that would be late: what goes before it, at the pace of each lane."""
        if not self._shed or deadline_ns is None:
            return
        lane, max_rows = model.lanes.get(key), signature.max_batch_size
        share = lane.shares.get(tenant) if lane is not None else None
        who = model.tenants.get(tenant)
        own, turn, ahead = request.rows, model.clock if who is None else who.turn, 0
        if share is not None:
            own, turn = own + share.rows, turn + share.rows
        if lane is not None:  # by turns, of others no more than of it
            ahead = min(lane.rows, own * (len(lane.shares) + (share is None)))
        wait = self._paces.of(key).wait(ahead, max_rows, model.limit)
        for other in model.lanes.values():
            if other is not lane and (other.rank, other.head[0]) <= (rank_of(key), turn):
                wait += other.pace.batches(other.rows, other.max_rows, ahead // max_rows + 1) / model.limit
        remaining = _remaining(deadline_ns)
        if wait > remaining or (wait > remaining * _FILL and ahead > max_rows * model.limit):
            raise self._refuse(model.name, wait)

    def _make_room(self, model: ModelQueue, tenant: str) -> None:
        """The newest request of who has most waiting gives way, unless that is ``tenant`` itself."""
        shares = [(lane, share) for lane in model.lanes.values() for share in lane.shares.values()]
        waiting: dict[str, int] = {}
        for _, share in shares:
            name = share.tenant.name
            waiting[name] = waiting.get(name, 0) + len(share.waiting)
        greediest = max(waiting, key=lambda name: waiting[name], default=tenant)
        if greediest == tenant or waiting[greediest] <= waiting.get(tenant, 0) + 1:
            raise self._refuse(model.name, 1.0)
        _, share = max(
            (pair for pair in shares if pair[1].tenant.name == greediest), key=lambda pair: len(pair[1].waiting)
        )
        for entry in reversed(share.waiting):
            if not entry.gone:
                model.unqueue(entry)
                entry.future.set_exception(self._refuse(model.name, 1.0))
                return

    def _refuse(self, model: str, wait_s: float) -> Unavailable:
        self.shed[model] = self.shed.get(model, 0) + 1
        retry_after_s = min(30.0, max(1.0, wait_s)) * random.uniform(1.0, 1.5)  # noqa: S311
        return Unavailable("the model's queue is full", retry_after_s=retry_after_s)

    def _landed(self, model: ModelQueue) -> None:
        """A Triton request for ``model`` ended: send what has gathered meanwhile."""
        model.in_flight -= 1
        while model.lanes and model.in_flight < model.limit:
            lane, batch = model.take()
            if batch:
                model.in_flight += 1
                task = asyncio.create_task(self._send(model, lane, batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send(self, model: ModelQueue, lane: Lane, batch: list[Waiting]) -> None:
        batch = [entry for entry in batch if not entry.gone]  # some may have gone since they were taken
        try:
            if not batch:
                return
            results = await self._run(lane, batch)
        except (ModelFailed, Invalid) as error:
            self._divide(model, lane, batch, error)
        except GatewayError as error:
            _fail(batch, error)
        except asyncio.CancelledError:
            _fail(batch, Unavailable("the gateway is shutting down", retry_after_s=1.0))
            raise
        except Exception as error:  # noqa: BLE001 - a defect, which each of them logs and answers: none waits for ever
            _fail(batch, error)
        else:
            for entry, result in zip(batch, results, strict=True):
                if not entry.gone:
                    entry.future.set_result(result)
        finally:
            self._landed(model)

    def _divide(self, model: ModelQueue, lane: Lane, batch: list[Waiting], error: GatewayError) -> None:
        """One request must not spoil its neighbours' answers: let the halves of ``batch`` wait for their turns again.

        None of it was answered. What was refused was not executed either; what failed may have been.
        """
        again = self._retry or isinstance(error, Invalid)
        rest = [entry for entry in batch if again or entry.request.idempotent] if len(batch) > 1 else []
        _fail([entry for entry in batch if entry not in rest], error)
        middle = (len(rest) + 1) // 2
        for half in (rest[:middle], rest[middle:]):
            left = [entry for entry in half if not entry.gone]
            if left:
                key = (*lane.key, next(self._parts))  # nobody joins it
                part = model.lanes[key] = Lane(key, sum(entry.request.rows for entry in left), lane.pace)
                for entry in left:
                    model.put(part, entry)

    async def _run(self, lane: Lane, batch: list[Waiting]) -> list[InferenceResult]:
        deadlines = [entry.deadline_ns for entry in batch]
        latest = None if None in deadlines else max(deadline for deadline in deadlines if deadline is not None)
        request = _join([entry.request for entry in batch])
        self._on_batch(request.model, len(batch), request.rows)
        begin = time.monotonic()
        call = asyncio.ensure_future(self._pool.infer(request, latest))
        left = len(batch)

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


class PatientCoalescer(Coalescer):
    """Ends what it was given, though its caller may have gone: cancellation is switched off. Deadlines hold."""

    async def infer(
        self, request: InferenceRequest, signature: Signature, deadline_ns: int | None = None, tenant: str = ""
    ) -> InferenceResult:
        """The same; cancelling the caller ends nothing else."""
        work = asyncio.ensure_future(super().infer(request, signature, deadline_ns, tenant))
        self._tasks.add(work)
        work.add_done_callback(self._over)
        return await asyncio.shield(work)

    def _over(self, work: asyncio.Task[InferenceResult]) -> None:
        self._tasks.discard(work)
        if not work.cancelled():
            work.exception()  # its caller may not be there to hear of it


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


def _expire(entry: Waiting) -> None:
    if not entry.future.done():
        entry.future.set_exception(DeadlineExceeded("the deadline passed before the model answered"))


def _fail(batch: list[Waiting], error: Exception) -> None:
    for entry in batch:
        if not entry.gone:
            entry.future.set_exception(error)
