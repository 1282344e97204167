"""Whether a verified caller may, now: rates, concurrency, tokens, pixels and budget, taken together."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.access.budgets import Budgets, Reservation
from gateway.access.limits import Gate, Level, Limits, LocalLimiter, Rate, Verdict, gate_of, headers_of
from gateway.access.policy import Policies
from gateway.errors import RateLimited, TooLarge, Unauthenticated
from gateway.types import Call, Principal, Units

if TYPE_CHECKING:
    from gateway.access.shared import SharedLimiter

Estimate = Callable[[str, Units], tuple[int, float]]
"""Expected compute nanoseconds and USD of some units of a model."""

_MAX_GATES = 50_000


class Permit:
    """The right to be in flight. :meth:`leave` gives it back; only the first time counts."""

    __slots__ = ("_admission", "_gate", "_left", "_member", "_reservation")

    def __init__(self, admission: Admission, gate: Gate, member: str | None, reservation: Reservation | None) -> None:
        self._admission = admission
        self._gate = gate
        self._member = member
        self._reservation = reservation
        self._left = False

    def leave(self, call: Call) -> None:
        """Free the places held, and settle the budget at ``call.estimated_cost_usd``."""
        if self._left:
            return
        self._left = True
        self._admission.release(self._gate, self._member)
        if self._reservation is not None:
            self._admission.budgets.settle(self._reservation, call.estimated_cost_usd)


class Admission:
    """Admits calls on one gateway; with ``shared`` its limits hold over all gateways."""

    def __init__(
        self,
        policies: Policies,
        budgets: Budgets,
        *,
        shared: SharedLimiter | None = None,
        estimate: Estimate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budgets = budgets
        self._policies = policies
        self._shared = shared
        self._estimate = estimate
        self._clock = clock
        self._local = LocalLimiter()
        self._gates: OrderedDict[tuple[str, str, str], Gate] = OrderedDict()
        self._gates_revision = -1
        self.refused: dict[str, int] = {}
        """Refusals by the name of the limit (``key_requests``, …)."""

    @property
    def fallbacks(self) -> int:
        """Requests that were limited locally because Redis did not answer."""
        return self._shared.fallbacks if self._shared is not None else 0

    def limits_of(self, principal: Principal) -> Limits:
        """Return the limits of a caller's tier, with its highest priority and longest deadline."""
        return self._policies.current.tier(principal.tier)

    def max_timeout_s(self, principal: Principal) -> float | None:
        """Longest deadline in seconds that the caller's tier allows; None: no limit of its own."""
        return self.limits_of(principal).max_timeout_s

    def max_priority(self, principal: Principal) -> int | None:
        """Highest priority that the caller's tier allows (1 is the highest, 0: none may be asked for); None: any."""
        return self.limits_of(principal).max_priority

    def check(self, call: Call) -> None:
        """Refuse a call that :meth:`enter` would refuse whatever its units, and take nothing.

        Before a picture is decoded, so that a refused request costs next to nothing. Limits that are shared over
        Redis are not known here; :meth:`enter` asks. Raises ``RateLimited``.
        """
        principal = call.principal
        if principal is None or (self._shared is not None and self._shared.available):
            return
        gate = self._gate(principal, call.model)
        if not gate.policy:
            return
        share = 1.0 / self._shared.gateways if self._shared is not None else 1.0
        verdict = self._local.check(gate, self._clock(), share)
        if verdict.refused is not None:
            call.headers.update(headers_of(gate, verdict))
            raise self._refusal(verdict)

    async def enter(self, call: Call) -> Permit:
        """Admit ``call``, whose principal, model and units are set; its reply gets rate-limit headers.

        Raises ``RateLimited``, ``TooLarge`` (more than the limit ever allows), ``BudgetExceeded``,
        and ``Unavailable`` when a budget cannot be checked.
        """
        principal = call.principal
        if principal is None:
            raise Unauthenticated("A valid API key is required.")
        gate = self._gate(principal, call.model)
        member: str | None = None
        if gate.policy:
            member = await self._pass(gate, call)
        if not self.budgets.applies(principal):
            return Permit(self, gate, member, None)
        cost = call.estimated_cost_usd
        if self._estimate is not None:
            cost = max(cost, self._estimate(call.model, call.units)[1])
        try:
            reservation = await self.budgets.reserve(principal, cost)
        except BaseException:
            self.release(gate, member)
            raise
        return Permit(self, gate, member, reservation)

    def release(self, gate: Gate, member: str | None) -> None:
        """Free the places of one request; for :class:`Permit`."""
        if member is None:
            self._local.release(gate)
        elif self._shared is not None:
            self._shared.release(gate, member)

    async def _pass(self, gate: Gate, call: Call) -> str | None:
        """Take what ``gate`` asks for; the name of the places held in Redis, None if held here."""
        for rate in gate.rates:
            if rate.cost(call.units) > rate.capacity:
                raise TooLarge(f"The request has more {rate.kind} than the limit allows at once.")
        member: str | None = None
        verdict: Verdict | None = None
        if self._shared is not None:
            answer = await self._shared.take(gate, call.units)
            if answer is not None:
                verdict, member = answer
        if verdict is None:
            share = 1.0 / self._shared.gateways if self._shared is not None else 1.0
            verdict = self._local.take(gate, call.units, self._clock(), share)
        call.headers.update(headers_of(gate, verdict))
        if verdict.refused is not None:
            raise self._refusal(verdict)
        return member

    def _refusal(self, verdict: Verdict) -> RateLimited:
        refused = verdict.refused
        if refused is None:
            raise RuntimeError("nothing was refused")
        self.refused[refused.name] = self.refused.get(refused.name, 0) + 1
        wait = max(1.0, verdict.wait_s) * random.uniform(1.0, 1.2)  # noqa: S311 - jitter, not a secret
        what = refused.kind if isinstance(refused, Rate) else "concurrent requests"
        return RateLimited(f"Over the limit of {what}.", retry_after_s=wait)

    def _gate(self, principal: Principal, model: str) -> Gate:
        policy = self._policies.current
        if policy.revision != self._gates_revision:
            self._gates.clear()
            self._gates_revision = policy.revision
        key = (principal.key_id, principal.tier, model)
        gate = self._gates.get(key)
        if gate is None:
            levels: list[tuple[Level, str, Limits]] = [("key", principal.key_id, policy.tier(principal.tier))]
            subjects: list[tuple[Level, str]] = [
                ("key", principal.key_id),
                ("project", principal.project),
                ("organisation", principal.organisation),
                ("model", model),
            ]
            for level, name in subjects:
                limits = policy.rules.get((level, name))
                if limits is not None and level == "key":
                    levels[0] = ("key", name, levels[0][2].narrowed(limits))
                elif limits is not None:
                    levels.append((level, name, limits))
            gate = self._gates[key] = gate_of(levels)
            if len(self._gates) > _MAX_GATES:
                self._gates.popitem(last=False)
        return gate
