"""The one way through: authenticate, admit, infer, record. Every dialect goes this way."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, Protocol, TypeVar

from msgspec.structs import replace
from tritonclient.grpc import service_pb2 as pb

from gateway.access.idempotency import Answer, Idempotency
from gateway.catalog import Catalog, ModelCard
from gateway.errors import (
    BadUpstream,
    ClientClosed,
    Forbidden,
    GatewayError,
    Internal,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from gateway.redaction import holds_key
from gateway.settings import Settings
from gateway.tasks.registry import Tasks
from gateway.tasks.workers import Workers
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import TRACE_PARENT, Tracing
from gateway.triton.coalescer import Coalescer
from gateway.triton.failures import ModelNotReady
from gateway.triton.pool import Pool
from gateway.types import Call, InferenceRequest, InferenceResult, Permit, Plan, Principal, Scope, Units

T = TypeVar("T")
Outcome = Literal["completed", "failed", "client_closed"]


class Authenticator(Protocol):
    """Who calls."""

    async def authenticate(self, call: Call) -> Principal:
        """The verified caller. Raises ``Unauthenticated``."""
        ...


class Admission(Protocol):
    """Whether the caller may, now."""

    def max_timeout_s(self, principal: Principal) -> float | None:
        """Longest deadline that the caller may ask for, in seconds; None: no limit of its own."""
        ...

    def max_priority(self, principal: Principal) -> int | None:
        """Highest priority that the caller may ask for (1 is the highest, 0: none); None: any."""
        ...

    def check(self, call: Call) -> None:
        """Raises ``RateLimited`` for a call that ``enter`` would refuse whatever its units; takes nothing."""
        ...

    async def enter(self, call: Call) -> Permit:
        """Raises ``RateLimited`` or ``BudgetExceeded``."""
        ...


class Ledger(Protocol):
    """What was done, for whom, at what cost."""

    async def reserve(self, call: Call) -> None:
        """Durable before anything is executed. Raises ``Unavailable``."""
        ...

    async def finish(
        self, call: Call, state: Outcome, status: int, error: str | None, *, delivered: bool = False
    ) -> None:
        """Durable before the answer leaves. ``delivered``: of a client that went, a part had left already."""
        ...

    def estimate(self, model: str, units: Units, elapsed_ns: int = 0) -> tuple[int, float]:
        """Compute ns and USD that ``units`` should take, from recent measurements: at most ``elapsed_ns``, if given."""
        ...


class ChangeLog(Protocol):
    """The audit, for changes to what is served."""

    async def begin(self, call: Call, action: str, model: str) -> None:
        """Write that the caller is about to do ``action`` to ``model``. Raises ``Unavailable``: then he may not."""
        ...

    async def changed(self, call: Call, action: str, model: str, *, result: str, details: dict[str, str]) -> None:
        """Write that ``call``'s caller did ``action`` to ``model``. Raises ``Unavailable``."""
        ...


class Pipeline:
    """Built once by the composition root; all its methods raise :class:`~gateway.errors.GatewayError`."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        pool: Pool,
        coalescer: Coalescer,
        authenticator: Authenticator,
        admission: Admission,
        ledger: Ledger,
        metrics: Metrics,
        executor: Executor,
        idempotency: Idempotency | None = None,
        changes: ChangeLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        self._catalog = catalog
        self._coalescer = coalescer
        self._authenticator = authenticator
        self._admission = admission
        self._ledger = ledger
        self._workers = Workers(executor, settings.preprocess_threads, shed=settings.shed)
        self._changes = changes
        self._tracing = tracing
        self.draining = False
        """The gateway is about to stop: it is not ready, and goes on serving."""
        self._idempotency = idempotency
        self.tasks = Tasks(settings)

    # --- who and what

    async def authenticate(self, call: Call, scope: Scope) -> None:
        """Verify the caller's credential and that it has ``scope``; sets ``call.principal``."""
        begin = time.monotonic_ns()
        if self._tracing is not None:
            self._tracing.begin(call)
        principal = await self._authenticator.authenticate(call)
        call.principal = principal
        longest = self._admission.max_timeout_s(principal)
        if longest is not None:
            self.set_timeout(call, min(longest, call.remaining_s() or longest))
        call.stages["auth"] = time.monotonic_ns() - begin
        if scope not in principal.scopes:
            raise Forbidden(f"this key lacks the scope {scope!r}")

    def authorize(self, call: Call, model: str) -> None:
        """Raise ``Forbidden`` unless the key may use ``model``; the same answer whether it exists or not."""
        principal = call.principal
        if principal is None:
            raise Unauthenticated("a key is required")
        if not principal.may_use(model):
            raise Forbidden("this key may not use that model", param="model")

    def card(self, call: Call, model: str) -> ModelCard:
        """The card of a model that the caller may use."""
        self.authorize(call, model)
        card = self._catalog.get(model)
        if card is None:
            raise NotFound("no such model", param="model")
        return card

    def identify(self, call: Call, model: str) -> None:
        """Set ``call.model`` to a model that is served, with a recipe or without, and that the caller may use."""
        self.authorize(call, model)
        if self._catalog.get(model) is None and not self.is_ready(model):
            raise NotFound("no such model", param="model")
        call.model = model

    async def in_repository(self, call: Call, model: str) -> str:
        """The name of a model that can be loaded: it has a recipe, or Triton's repository holds it."""
        self.authorize(call, model)
        if self._catalog.get(model) is None:
            index = await self.pool.ask("RepositoryIndex", pb.RepositoryIndexRequest())
            if model not in {entry.name for entry in index.models}:
                raise NotFound("no such model", param="model")
        return model

    async def change_model(
        self, call: Call, model: str, action: Literal["load", "unload"], *, unload_dependents: bool = False
    ) -> None:
        """Load (or reload) or unload a model on every Triton, and write that to the audit.

        ``unload_dependents``: the models that an ensemble is made of too, as Triton knows them.

        Raises ``Unavailable`` when it cannot be written, before anything is changed; ``BadUpstream`` when Triton
        cannot load it: a version that served before goes on serving.
        """
        name = await self.in_repository(call, model)
        if self._changes is not None:
            await self._changes.begin(call, f"model.{action}", name)
        message = (pb.RepositoryModelLoadRequest if action == "load" else pb.RepositoryModelUnloadRequest)(
            model_name=name
        )
        if action == "unload" and unload_dependents:
            message.parameters["unload_dependents"].bool_param = True
        result = "failed"
        details: dict[str, str] = {}
        try:
            await self.pool.ask_all(f"RepositoryModel{action.capitalize()}", message)
            result = "ok"
        except GatewayError as error:
            details = {"error": error.code}
            if isinstance(error, Unavailable) and not isinstance(error, ModelNotReady):
                raise
            raise BadUpstream(f"a server could not {action} the model; what it served before, it serves") from error
        finally:
            if self._changes is not None:
                await asyncio.shield(
                    self._changes.changed(call, f"model.{action}", name, result=result, details=details)
                )

    def cards(self, call: Call) -> list[ModelCard]:
        """Cards of all models that the caller may use."""
        principal = call.principal
        return [card for card in self._catalog if principal is not None and principal.may_use(card.name)]

    def labels(self, model: str) -> tuple[str, ...]:
        """Class labels of ``model``; empty without a recipe."""
        card = self._catalog.get(model)
        return card.recipe.labels if card else ()

    def is_ready(self, model: str) -> bool:
        """Whether ``model`` can be inferred now."""
        return model in self.pool.ready_models()

    def set_timeout(self, call: Call, seconds: float) -> None:
        """Move the deadline to ``seconds`` after the request was received, at most what settings and tier allow."""
        if not self.settings.deadlines:
            return
        limit = min(seconds, self.settings.max_timeout_s)
        if call.principal is not None:
            limit = min(limit, self._admission.max_timeout_s(call.principal) or limit)
        call.deadline_ns = call.received_ns + int(limit * 1e9)

    # --- before there is a plan

    async def prepared(self, call: Call, work: Callable[[], T], *, long: bool) -> T:
        """``work()``: here, or, where it is ``long``, in a thread of those that prepare tasks.

        Raises what the work raises; for long work also ``RateLimited`` before it begins, so that a refusal costs
        next to nothing, ``Unavailable`` and ``DeadlineExceeded``.
        """
        if not long:
            return work()
        self._admission.check(call)
        return await self._workers.run(work, call.deadline_ns)

    async def admitted(self, call: Call, work: Callable[[], T], *, long: bool) -> T:
        """The same for work that is the whole call: it holds a place within the caller's limits, and leaves no record.

        Raises ``RateLimited`` and ``BudgetExceeded`` as well.
        """
        permit = await self._admission.enter(call)
        try:
            return work() if not long else await self._workers.run(work, call.deadline_ns)
        finally:
            permit.leave(call)

    # --- the two things a caller can ask for

    async def run_task(self, call: Call, model: str, task_name: str, inputs: Any, options: Mapping[str, Any]) -> Any:
        """Run a task on plain inputs: the task's answer (``gateway.tasks.answers``)."""
        card = self.card(call, model)
        task = await self.tasks.get(card, task_name)
        call.model = card.name
        self._admission.check(call)  # before the work of decoding, so that a refusal costs next to nothing
        begin = time.monotonic_ns()
        if task.is_long(inputs, options):
            plan = await self._workers.run(lambda: task.plan(inputs, options), call.deadline_ns)
        else:
            plan = task.plan(inputs, options)
        call.stages["preprocess"] = time.monotonic_ns() - begin
        return await self._run(call, plan)

    async def infer(self, call: Call, request: InferenceRequest) -> InferenceResult:
        """Run one raw inference."""
        self.identify(call, request.model)
        plan = Plan((self._clamped(call, request),), Units(rows=request.rows), lambda results: results[0])
        result: InferenceResult = await self._run(call, plan)
        return result

    async def stream(self, call: Call, request: InferenceRequest) -> AsyncIterator[InferenceResult]:
        """Results of a decoupled model as they come."""
        self.identify(call, request.model)
        call.units = Units(rows=request.rows)
        self.pool.signature(request.model, request.version).check(request)
        await self._enter(call)
        async for result in self.pool.stream(_traced(self._clamped(call, request), call), call.deadline_ns):
            call.delivered = True
            yield result
        self._estimate(call)

    def _clamped(self, call: Call, request: InferenceRequest) -> InferenceRequest:
        """``request`` with a priority that the caller's tier allows: Triton's, where 1 is the highest and 0 none."""
        if not request.priority or call.principal is None:
            return request
        highest = self._admission.max_priority(call.principal)
        if highest is None or 0 < highest <= request.priority:
            return request
        return replace(request, priority=highest)

    async def once(self, call: Call, asked: Sequence[bytes], work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do ``work`` and close ``call``, or answer as before: for a call with an idempotency key.

        ``asked`` is everything that makes the request what it is.
        """
        keys = self._idempotency
        if keys is None:
            return await work()
        self._admission.check(call)  # before the store is asked: who is over his limits costs it nothing
        return await keys.once(call, asked, work, self.close)

    async def close(self, call: Call, error: BaseException | None = None) -> None:
        """Record how an admitted call ended and give back its permit; before its answer leaves, and once.

        A call that was never admitted leaves no record. Raises ``Unavailable`` if the record cannot be
        made durable: the answer must not be given then.
        """
        permit = call.permit
        if permit is None:
            return
        call.permit = None
        begin = time.monotonic_ns()
        try:
            if error is None:
                await self._ledger.finish(call, "completed", 200, None)
            elif isinstance(error, asyncio.CancelledError | GeneratorExit | ClientClosed):
                # The client has gone and its task may be under cancellation: it is recorded all the same.
                await asyncio.shield(self._closed_by_client(call))
            elif isinstance(error, GatewayError):
                await self._ledger.finish(call, "failed", error.status, error.code)
            else:
                await self._ledger.finish(call, "failed", Internal.status, Internal.code)
        finally:
            call.stages["record"] = time.monotonic_ns() - begin
            permit.leave(call)
            self.metrics.left(call.model)

    async def _closed_by_client(self, call: Call) -> None:
        """Nothing is owed for what never left; the part of a stream that did is billed by estimate."""
        if call.delivered:
            self._estimate(call)
        status, code = ClientClosed.status, ClientClosed.code
        await self._ledger.finish(call, "client_closed", status, code, delivered=call.delivered)

    def prepare(self) -> None:
        """Check what tasks need, and make most of it now rather than in somebody's first request. ``ValueError``."""
        self.tasks.prepare(self._catalog)

    # --- the way

    async def _run(self, call: Call, plan: Plan) -> Any:
        call.units = plan.units
        if call.reserve_key is not None:
            plan = replace(plan, requests=tuple(replace(request, idempotent=True) for request in plan.requests))
        signatures = []
        for request in plan.requests:
            signature = self.pool.signature(request.model, request.version)
            signature.check(request)
            signatures.append(signature)
        infer, deadline_ns = self._coalescer.infer, call.deadline_ns
        tenant = call.principal.project if call.principal is not None else ""
        # Here too, not only where it would wait: what is refused now leaves no record.
        self._coalescer.check(plan.requests[0], signatures[0], deadline_ns, tenant)
        await self._enter(call)
        begin = time.monotonic_ns()
        requests = plan.requests
        if call.trace_parent is not None:
            requests = tuple(_traced(request, call) for request in requests)
        if len(requests) == 1:
            results = [await infer(requests[0], signatures[0], deadline_ns, tenant)]
        else:
            results = await _gather(
                [
                    lambda r=request, s=signature: infer(r, s, deadline_ns, tenant)  # type: ignore[misc]
                    for request, signature in zip(requests, signatures, strict=True)
                ]
            )
        inferred = time.monotonic_ns()
        call.stages["infer"] = inferred - begin
        answer = plan.finish(results)
        call.stages["postprocess"] = time.monotonic_ns() - inferred
        self._estimate(call, len(requests))
        return answer

    async def _enter(self, call: Call) -> None:
        if call.permit is not None:
            raise RuntimeError("a call is admitted once")
        begin = time.monotonic_ns()
        permit = await self._admission.enter(call)
        try:
            if call.reserve_key is not None:
                await call.reserve_key()
            await self._ledger.reserve(call)
        except BaseException:
            permit.leave(call)
            raise
        call.permit = permit
        call.stages["admit"] = time.monotonic_ns() - begin
        self.metrics.entered(call.model)

    def _estimate(self, call: Call, requests: int = 1) -> None:
        """What the call should cost, which is no more than it can have taken: its ``requests`` ran side by side."""
        call.estimated_compute_ns, call.estimated_cost_usd = self._ledger.estimate(
            call.model, call.units, call.stages.get("infer", 0) * requests
        )


_TRACE_STATE = re.compile(r"[\x20-\x7e]{1,512}")


def _traced(request: InferenceRequest, call: Call) -> InferenceRequest:
    """``request`` with the caller's trace context, if there is one and it is well-formed (W3C Trace Context)."""
    parent, state = call.trace_parent, call.trace_state
    if parent is None or not TRACE_PARENT.fullmatch(parent):
        return request
    trace = (("traceparent", parent),)
    if state is not None and _TRACE_STATE.fullmatch(state) and not holds_key(state):
        return replace(request, trace=(*trace, ("tracestate", state)))
    return replace(request, trace=trace)


async def _gather(calls: list[Callable[[], Awaitable[T]]]) -> list[T]:
    """Results of ``calls`` run concurrently; at the first failure the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
