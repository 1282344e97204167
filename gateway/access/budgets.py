"""Budgets in USD: reserved before a request is executed, settled after it.

The store holds, for each budget and period, what is spent and what is leased to gateways; their sum
never passes the limit, however many gateways and requests there are. A gateway leases a small part
of the budget in one transaction and reserves from it in memory, so that most requests cost no
statement; once a second it writes what was spent and gives back what lies idle. Each write of a lease
has a number, by which the next one knows whether it was committed. A lease whose gateway was killed
counts as spent when it expires, and is then corrected by the ledger's records.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.access.policy import PICO, Budget, Policies
from gateway.background import Background
from gateway.errors import BudgetExceeded, Unavailable
from gateway.store import budgets as statements
from gateway.store.budgets import BudgetKey
from gateway.store.database import Store
from gateway.types import Principal

log = structlog.get_logger(__name__)

_FLUSH_S = 1.0
_LEASE_US = 60_000_000
_RECOUNT_AFTER_US = 60_000_000
_REFUSE_S = 1.0
"""After a refusal by the store the next ones are answered from memory for so long."""
_LEASE_PARTS = 64
"""A lease is at most this fraction of the budget, unless one request costs more."""


@dataclass(slots=True)
class _Change:
    """One write of a lease, and what it moves between an account and the store. All amounts in pico-USD."""

    number: int
    """How often the lease has been written, with this one."""
    generation: int
    spent: int
    returned: int
    """Of what was available."""
    surplus: int
    """Of what was leased under a higher limit."""
    granted: int = 0
    ends: bool = False
    """Nothing is leased after it."""

    @property
    def leased(self) -> int:
        """What the lease grows by."""
        return self.granted - self.spent - self.returned - self.surplus


@dataclass(slots=True)
class _Account:
    """This gateway's lease of one budget in one window. All amounts in pico-USD.

    The store's lease is always ``available + reserved + spent + surplus`` and what a change in doubt took out.
    """

    budget: Budget
    window: str
    available: int = 0
    reserved: int = 0
    spent: int = 0
    """Settled, not written yet."""
    surplus: int = 0
    """Leased before the limit was lowered: to be given back."""
    generation: int = 0
    """How often the limit was lowered."""
    used: bool = False
    writes: int = 0
    """How often the store's lease of ours has been written; 0: there is none."""
    doubt: _Change | None = None
    """The last change, if nobody knows whether it was committed."""
    refused_until: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def key(self) -> BudgetKey:
        return (self.budget.level, self.budget.name, self.budget.period)

    def adopt(self, budget: Budget) -> None:
        """Go by what is set now; what was leased under a higher limit is not spent any more."""
        if budget.limit_pico_usd < self.budget.limit_pico_usd:
            self.generation += 1
            self.surplus += self.available
            self.available = 0
        self.budget = budget
        self.refused_until = -math.inf

    def free(self, amount: int, generation: int) -> None:
        """Make available, or give back later, what was leased under the limit of ``generation``."""
        if generation == self.generation:
            self.available += amount
        else:
            self.surplus += amount

    def take_out(self, *, idle: bool) -> _Change:
        """What is to be written now: what was spent, and what is not kept (nothing, unless ``idle``)."""
        returned = self.available if idle or self.available < 0 else 0  # below 0: requests cost more than was leased
        change = _Change(self.writes + 1, self.generation, self.spent, returned, self.surplus)
        self.available -= returned
        self.spent = self.surplus = 0
        return change

    def put_back(self, change: _Change) -> None:
        """It was not written."""
        self.spent += change.spent
        self.surplus += change.surplus
        self.free(change.returned, change.generation)

    def book(self, change: _Change) -> None:
        """It was written."""
        self.writes = 0 if change.ends else change.number
        self.free(change.granted, change.generation)

    def learn(self, writes: int) -> bool:
        """Find out by the store's number of writes what became of the last one; False: the lease is lost."""
        change, self.doubt = self.doubt, None
        if change is not None:
            committed = writes == (0 if change.ends else change.number)
            (self.book if committed else self.put_back)(change)
        return bool(writes) or not self.writes


@dataclass(slots=True)
class Reservation:
    """An amount held in every budget that applies; settled once."""

    amount_pico_usd: int
    accounts: list[tuple[_Account, int]]
    """With the generation of each when the amount was taken."""
    settled: bool = False


@dataclass(slots=True, frozen=True)
class BudgetState:
    """How a budget stands in its current window."""

    budget: Budget
    window: str
    spent_pico_usd: int
    leased_pico_usd: int


class Budgets:
    """Reserves and settles for one gateway. ``start`` and ``stop`` run its background task."""

    def __init__(
        self,
        store: Store,
        policies: Policies,
        gateway_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        floor_usd: float = 1e-6,
    ) -> None:
        """``floor_usd`` is reserved for a request whose cost nobody can estimate yet."""
        self._store = store
        self._policies = policies
        self._gateway_id = gateway_id[:64]
        self._clock = clock
        self._wall_clock = wall_clock
        self._floor = max(1, round(floor_usd * PICO))
        self._accounts: dict[tuple[BudgetKey, str], _Account] = {}
        """By budget and window: those of windows that are over stay until all is settled."""
        self._background = Background()
        self.refused = 0
        """Requests refused because a budget was spent."""

    async def start(self) -> None:
        """Begin to write what is spent."""
        self._background.every(_FLUSH_S, self._write, "budgets")

    async def stop(self) -> None:
        """Write what was spent and give every lease back."""
        await self._background.stop()
        with contextlib.suppress(Unavailable):
            await self.flush(give_back=True)

    def applies(self, principal: Principal) -> bool:
        """Whether any budget is set for ``principal``; test keys are never billed."""
        budgets = self._policies.current.budgets
        return bool(budgets) and not principal.test and any(subject in budgets for subject in _subjects(principal))

    async def reserve(self, principal: Principal, cost_usd: float) -> Reservation | None:
        """Hold ``cost_usd`` in every budget of the key, its project and its organisation.

        None: no budget applies. Raises ``BudgetExceeded``, or ``Unavailable`` when the store does
        not answer and no lease is left.
        """
        if not self.applies(principal):
            return None
        amount = max(self._floor, math.ceil(cost_usd * PICO))
        reservation = Reservation(amount, [])
        try:
            for subject in _subjects(principal):
                for budget in self._policies.current.budgets.get(subject, ()):
                    account = await self._take(budget, amount)
                    reservation.accounts.append((account, account.generation))
        except BaseException:
            self.settle(reservation, 0.0)
            raise
        return reservation

    def settle(self, reservation: Reservation, cost_usd: float) -> None:
        """Turn what was held into what was spent; the second time it does nothing."""
        if reservation.settled:
            return
        reservation.settled = True
        spent = max(0, math.ceil(cost_usd * PICO))
        for account, generation in reservation.accounts:
            account.reserved -= reservation.amount_pico_usd
            account.spent += spent
            account.free(reservation.amount_pico_usd - spent, generation)

    async def states(self, subjects: list[tuple[str, str]] | None = None) -> list[BudgetState]:
        """Return how budgets stand: those of ``subjects`` (level and name), or all."""
        policy = await self._policies.refresh()
        chosen = (
            list(policy.budgets) if subjects is None else [subject for subject in subjects if subject in policy.budgets]
        )
        async with self._store.read() as connection:
            states = []
            for subject in chosen:
                for budget in policy.budgets[subject]:
                    window = self._window(budget.period)
                    row = await statements.window_row(connection, (budget.level, budget.name, budget.period), window)
                    states.append(BudgetState(budget, window, *(row or (0, 0))))
        return states

    async def flush(self, *, give_back: bool = False) -> None:
        """Write what was spent, renew leases, give back idle ones. Raises ``Unavailable``."""
        for key, account in list(self._accounts.items()):
            budget = self._set_now(account.key)
            if budget is not None and budget is not account.budget:
                account.adopt(budget)
            over = account.window != self._window(account.budget.period)
            async with account.lock:
                await self._flush(account, give_back or over or budget is None)
            if over and not account.writes and account.doubt is None and self._is_current(account):
                del self._accounts[key]
        await self._tidy()

    # --- reserving

    async def _take(self, budget: Budget, amount: int) -> _Account:
        account = self._account(budget)
        while account.available < amount:
            async with account.lock:
                # Others may take of a lease before it is here, and a lease that was lost leaves the account to nobody.
                while account.available < amount and self._is_current(account):
                    await self._lease(account, amount)
            account = self._account(budget)
        account.used = True
        account.available -= amount
        account.reserved += amount
        return account

    def _account(self, budget: Budget) -> _Account:
        key = (budget.level, budget.name, budget.period)
        window = self._window(budget.period)
        account = self._accounts.get((key, window))
        if account is None:
            account = self._accounts[key, window] = _Account(budget, window)
        elif account.budget is not budget:
            account.adopt(self._set_now(key) or budget)
        return account

    def _is_current(self, account: _Account) -> bool:
        return self._accounts.get((account.key, account.window)) is account

    def _set_now(self, key: BudgetKey) -> Budget | None:
        """The budget as it is set now."""
        level, name, period = key
        for budget in self._policies.current.budgets.get((level, name), ()):
            if budget.period == period:
                return budget
        return None

    async def _lease(self, account: _Account, amount: int) -> None:
        """Lease enough for ``amount``. Raises ``BudgetExceeded``."""
        if self._clock() < account.refused_until:
            raise self._exceeded(account)
        change = await self._exchange(account, amount=amount)
        if change is not None and not change.granted and account.available < amount:
            account.refused_until = self._clock() + _REFUSE_S
            raise self._exceeded(account)

    def _exceeded(self, account: _Account) -> BudgetExceeded:
        self.refused += 1
        budget = account.budget
        return BudgetExceeded(f"The {budget.level}'s budget for the {budget.period} is spent.")

    # --- writing

    async def _flush(self, account: _Account, give_back: bool) -> None:
        idle = give_back or not account.used
        account.used = account.reserved > 0
        if self._is_current(account) and (account.writes or account.doubt is not None):
            await self._exchange(account, idle=idle)

    async def _exchange(self, account: _Account, *, idle: bool = False, amount: int = 0) -> _Change | None:
        """Write what was spent, give back what is not kept, lease enough for ``amount`` if the limit allows it.

        All in one transaction. None: there was nothing to do, or the lease had expired (this process stood still) and
        was counted as spent as a whole; the account is nobody's then.
        """
        change, committing = None, False
        try:
            async with self._store.write() as connection:
                writes = await statements.lease_writes(connection, self._gateway_id, account.key, account.window)
                if not account.learn(writes):
                    del self._accounts[account.key, account.window]
                    return None
                if not writes and not amount:
                    return None
                change = account.take_out(idle=idle)
                if amount:
                    change.granted = await self._grant(connection, account, change, amount)
                change.ends = not change.granted and (not writes or (idle and not account.reserved))
                await self._write_change(connection, account, change)
                committing = True
        except BaseException:
            if committing:
                account.doubt = change
            elif change is not None:
                account.put_back(change)
            raise
        account.book(change)
        return change

    async def _grant(self, connection: AsyncConnection, account: _Account, change: _Change, amount: int) -> int:
        """What may be leased so that ``amount`` is available; 0: it is already, or the limit does not allow it."""
        missing = amount - account.available
        if missing <= 0:
            return 0
        await statements.ensure_window(connection, self._store.kind, account.key, account.window)
        standing = await statements.window_row(connection, account.key, account.window, lock=True)
        spent, leased = standing or (0, 0)
        limit = account.budget.limit_pico_usd
        free = limit - spent - leased + change.returned + change.surplus
        grant = min(free, max(missing, limit // _LEASE_PARTS))
        return grant if grant >= missing else 0

    async def _write_change(self, connection: AsyncConnection, account: _Account, change: _Change) -> None:
        key, window = account.key, account.window
        if change.ends:
            await statements.end_lease(connection, self._gateway_id, key, window)
        else:
            until = self._now() + _LEASE_US
            await statements.write_lease(
                connection, self._gateway_id, key, window, writes=change.number, leased=change.leased, until=until
            )
        await statements.add(connection, key, window, spent=change.spent, leased=change.leased)

    async def _tidy(self) -> None:
        """Count the leases of gateways that are gone as spent, and a while later as what the ledger shows."""
        now = self._now()
        async with self._store.read() as connection:
            if not await statements.expired(connection, now):
                return
        async with self._store.write() as connection:
            await statements.reap(connection, now, now + _RECOUNT_AFTER_US)
            await statements.recount(connection, now)

    async def _write(self) -> None:
        try:
            await self.flush()
        except Unavailable:
            log.warning("budgets.not_written")

    def _now(self) -> int:
        """Microseconds since the epoch."""
        return int(self._wall_clock() * 1_000_000)

    def _window(self, period: str) -> str:
        day = dt.datetime.fromtimestamp(self._wall_clock(), dt.timezone.utc).strftime("%Y-%m-%d")
        return day if period == "day" else day[:7]


def _subjects(principal: Principal) -> tuple[tuple[str, str], ...]:
    return (
        ("key", principal.key_id),
        ("project", principal.project),
        ("organisation", principal.organisation),
    )
