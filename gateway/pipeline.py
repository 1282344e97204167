"""The one way through: authenticate, admit, infer, record. Every dialect goes this way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Literal, Protocol, TypeVar

from gateway.catalog import Catalog, ModelCard
from gateway.errors import ClientClosed, Forbidden, GatewayError, Internal, NotFound, Unauthenticated
from gateway.settings import Settings
from gateway.tasks import create_task, task_names
from gateway.tasks.base import Task
from gateway.tasks.text import Tokenizers
from gateway.telemetry.metrics import Metrics
from gateway.triton.coalescer import Coalescer
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

    async def enter(self, call: Call) -> Permit:
        """Raises ``RateLimited`` or ``BudgetExceeded``."""
        ...


class Ledger(Protocol):
    """What was done, for whom, at what cost."""

    async def reserve(self, call: Call) -> None:
        """Durable before anything is executed. Raises ``Unavailable``."""
        ...

    async def finish(self, call: Call, state: Outcome, status: int, error: str | None) -> None:
        """Durable before the answer leaves."""
        ...

    def estimate(self, model: str, units: Units, elapsed_ns: int = 0) -> tuple[int, float]:
        """Compute ns and USD that ``units`` should take, from recent measurements; ``elapsed_ns`` without any."""
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
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        self._catalog = catalog
        self._coalescer = coalescer
        self._authenticator = authenticator
        self._admission = admission
        self._ledger = ledger
        self._executor = executor
        self._tasks: dict[tuple[str, str], Task] = {}
        self._tokenizers = Tokenizers()

    # --- who and what

    async def authenticate(self, call: Call, scope: Scope) -> None:
        """Verify the caller's credential and that it has ``scope``; sets ``call.principal``."""
        begin = time.monotonic_ns()
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
        """Move the deadline to ``seconds`` after the request was received, at most what setting and tier allow."""
        limit = min(seconds, self.settings.max_timeout_s)
        if call.principal is not None:
            limit = min(limit, self._admission.max_timeout_s(call.principal) or limit)
        call.deadline_ns = call.received_ns + int(limit * 1e9)

    # --- the two things a caller can ask for

    async def run_task(self, call: Call, model: str, task_name: str, inputs: Any, options: Mapping[str, Any]) -> Any:
        """Run a task on plain inputs: the task's answer (``gateway.tasks.answers``)."""
        card = self.card(call, model)
        task = self.task(card, task_name)
        call.model = card.name
        begin = time.monotonic_ns()
        if task.is_long(inputs):
            plan = await asyncio.get_running_loop().run_in_executor(self._executor, task.plan, inputs, options)
        else:
            plan = task.plan(inputs, options)
        call.stages["preprocess"] = time.monotonic_ns() - begin
        return await self._run(call, plan)

    async def infer(self, call: Call, request: InferenceRequest) -> InferenceResult:
        """Run one raw inference."""
        self.identify(call, request.model)
        plan = Plan((request,), Units(rows=request.rows), lambda results: results[0])
        result: InferenceResult = await self._run(call, plan)
        return result

    async def stream(self, call: Call, request: InferenceRequest) -> AsyncIterator[InferenceResult]:
        """Results of a decoupled model as they come."""
        self.identify(call, request.model)
        call.units = Units(rows=request.rows)
        self.pool.signature(request.model, request.version).check(request)
        await self._enter(call)
        async for result in self.pool.stream(request, call.deadline_ns):
            yield result
        self._estimate(call)

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
                await asyncio.shield(self._ledger.finish(call, "client_closed", ClientClosed.status, ClientClosed.code))
            elif isinstance(error, GatewayError):
                await self._ledger.finish(call, "failed", error.status, error.code)
            else:
                await self._ledger.finish(call, "failed", Internal.status, Internal.code)
        finally:
            call.stages["record"] = time.monotonic_ns() - begin
            permit.leave(call)
            self.metrics.left(call.model)

    def task(self, card: ModelCard, task_name: str) -> Task:
        """The task called ``task_name`` on ``card``'s model, made once. Raises ``NotFound``."""
        task = self._tasks.get((card.name, task_name))
        if task is None:
            task = self._tasks[card.name, task_name] = create_task(card, task_name, self.settings, self._tokenizers)
        return task

    def prepare(self) -> None:
        """Read every built model's tokenizer now rather than in somebody's first request."""
        for card in self._catalog:
            if card.built:
                for name in task_names(card):
                    self.task(card, name)

    # --- the way

    async def _run(self, call: Call, plan: Plan) -> Any:
        call.units = plan.units
        signatures = []
        for request in plan.requests:
            signature = self.pool.signature(request.model, request.version)
            signature.check(request)
            signatures.append(signature)
        await self._enter(call)
        begin = time.monotonic_ns()
        if len(plan.requests) == 1:
            results = [await self._coalescer.infer(plan.requests[0], signatures[0], call.deadline_ns)]
        else:
            results = await _gather(
                [
                    lambda r=request, s=signature: self._coalescer.infer(r, s, call.deadline_ns)  # type: ignore[misc]
                    for request, signature in zip(plan.requests, signatures, strict=True)
                ]
            )
        inferred = time.monotonic_ns()
        call.stages["infer"] = inferred - begin
        answer = plan.finish(results)
        call.stages["postprocess"] = time.monotonic_ns() - inferred
        self._estimate(call)
        return answer

    async def _enter(self, call: Call) -> None:
        if call.permit is not None:
            raise RuntimeError("a call is admitted once")
        begin = time.monotonic_ns()
        permit = await self._admission.enter(call)
        try:
            await self._ledger.reserve(call)
        except BaseException:
            permit.leave(call)
            raise
        call.permit = permit
        call.stages["admit"] = time.monotonic_ns() - begin
        self.metrics.entered(call.model)

    def _estimate(self, call: Call) -> None:
        call.estimated_compute_ns, call.estimated_cost_usd = self._ledger.estimate(
            call.model, call.units, call.stages.get("infer", 0)
        )


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
