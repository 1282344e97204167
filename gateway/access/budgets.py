"""Budgets in USD: reserved before a request is executed, settled after it.

The store holds, for each budget and period, what is spent and what is leased to gateways; their sum
never passes the limit, however many gateways and requests there are. A gateway leases a small part
of the budget in one transaction and reserves from it in memory, so that most requests cost no
statement; once a second it writes what was spent and gives back what lies idle. A lease whose gateway
was killed counts as spent when it expires, and is then corrected by the ledger's records.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.access.policy import PICO, Budget, Policies
from gateway.background import Background
from gateway.errors import BudgetExceeded, Unavailable
from gateway.store.budgets import BudgetKey, add, billed, ensure_window, matches, window_row
from gateway.store.database import Store
from gateway.store.tables import budget_leases
from gateway.types import Principal

log = structlog.get_logger(__name__)

_FLUSH_S = 1.0
_LEASE_S = 60.0
_RECOUNT_AFTER_S = 60.0
_REFUSE_S = 1.0
"""After a refusal by the store the next ones are answered from memory for so long."""
_LEASE_PARTS = 64
"""A lease is at most this fraction of the budget, unless one request costs more."""


@dataclass(slots=True)
class _Account:
    """This gateway's lease of one budget in one window. All amounts in pico-USD."""

    budget: Budget
    window: str
    available: int = 0
    reserved: int = 0
    spent: int = 0
    """Settled, not written yet."""
    used: bool = False
    leased: bool = False
    """Whether the store has a lease of ours."""
    refused_until: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def key(self) -> BudgetKey:
        return (self.budget.level, self.budget.name, self.budget.period)


@dataclass(slots=True)
class Reservation:
    """An amount held in every budget that applies; settled once."""

    amount_pico_usd: int
    accounts: list[_Account]
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
        self._accounts: dict[BudgetKey, _Account] = {}
        self._closing: list[_Account] = []
        self._recounts: list[tuple[float, BudgetKey, str, int]] = []
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
                    reservation.accounts.append(account)
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
        for account in reservation.accounts:
            account.reserved -= reservation.amount_pico_usd
            account.available += reservation.amount_pico_usd - spent
            account.spent += spent

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
                    row = await window_row(connection, (budget.level, budget.name, budget.period), window)
                    states.append(BudgetState(budget, window, *(row or (0, 0))))
        return states

    async def flush(self, *, give_back: bool = False) -> None:
        """Write what was spent, renew leases, give back idle ones. Raises ``Unavailable``."""
        for key, account in list(self._accounts.items()):
            if account.window != self._window(account.budget.period):
                self._closing.append(self._accounts.pop(key))
        for account in [*self._accounts.values(), *self._closing]:
            async with account.lock:
                await self._flush(account, give_back or account in self._closing)
        self._closing = [account for account in self._closing if account.leased]
        await self._reap()
        await self._recount_due()

    # --- reserving

    async def _take(self, budget: Budget, amount: int) -> _Account:
        account = self._account(budget)
        account.used = True
        if account.available < amount:
            async with account.lock:
                while account.available < amount:  # others may take of a lease before it is here
                    await self._lease(account, amount)
        account.available -= amount
        account.reserved += amount
        return account

    def _account(self, budget: Budget) -> _Account:
        key = (budget.level, budget.name, budget.period)
        window = self._window(budget.period)
        account = self._accounts.get(key)
        if account is None or account.window != window:
            if account is not None:
                self._closing.append(account)
            account = self._accounts[key] = _Account(budget, window)
        if account.budget is not budget:
            account.budget = budget
            account.refused_until = -math.inf
        return account

    async def _lease(self, account: _Account, amount: int) -> None:
        """Lease enough for ``amount``. Raises ``BudgetExceeded``."""
        if self._clock() < account.refused_until:
            raise self._exceeded(account)
        limit = account.budget.limit_pico_usd
        missing = amount - account.available
        async with self._store.write() as connection:
            await ensure_window(connection, self._store.kind, account.key, account.window)
            spent, leased = await window_row(connection, account.key, account.window, lock=True) or (0, 0)
            free = limit - spent - leased
            grant = min(free, max(missing, limit // _LEASE_PARTS))
            if grant >= missing:
                await add(connection, account.key, account.window, leased=grant)
                await self._add_to_lease(connection, account, grant)
        if grant < missing:
            account.refused_until = self._clock() + _REFUSE_S
            raise self._exceeded(account)
        account.available += grant
        account.leased = True

    def _exceeded(self, account: _Account) -> BudgetExceeded:
        self.refused += 1
        budget = account.budget
        return BudgetExceeded(f"The {budget.level}'s budget for the {budget.period} is spent.")

    # --- writing

    async def _flush(self, account: _Account, give_back: bool) -> None:
        if not account.leased:
            return
        idle = give_back or not account.used
        account.used = account.reserved > 0
        spent, returned = account.spent, account.available if idle else 0
        account.spent -= spent
        account.available -= returned
        try:
            async with self._store.write() as connection:
                kept = await self._add_to_lease(connection, account, -spent - returned, must_exist=True)
                if kept:
                    await add(connection, account.key, account.window, spent=spent, leased=-spent - returned)
        except BaseException:
            account.spent += spent
            account.available += returned
            raise
        if not kept:
            # The lease had expired (this process stood still) and was counted as spent as a whole.
            self._accounts.pop(account.key, None)
            account.leased = False
        elif idle and account.reserved == 0 and account.spent == 0 and account.available == 0:
            async with self._store.write() as connection:
                await connection.execute(sa.delete(budget_leases).where(*self._lease_of(account)))
            account.leased = False

    async def _add_to_lease(
        self, connection: AsyncConnection, account: _Account, amount: int, *, must_exist: bool = False
    ) -> bool:
        expires_at = int((self._wall_clock() + _LEASE_S) * 1_000_000)
        table = budget_leases
        changed = await connection.execute(
            sa.update(table)
            .where(*self._lease_of(account))
            .values(leased_pico_usd=table.c.leased_pico_usd + amount, expires_at=expires_at)
        )
        if changed.rowcount or must_exist:
            return bool(changed.rowcount)
        level, name, period = account.key
        await connection.execute(
            sa.insert(table).values(
                gateway_id=self._gateway_id,
                level=level,
                name=name,
                period=period,
                window=account.window,
                leased_pico_usd=amount,
                expires_at=expires_at,
            )
        )
        return True

    def _lease_of(self, account: _Account) -> list[sa.ColumnElement[bool]]:
        table = budget_leases
        return [table.c.gateway_id == self._gateway_id, *matches(table, account.key, account.window)]

    async def _reap(self) -> None:
        """Count the leases of gateways that are gone as spent."""
        table = budget_leases
        now = int(self._wall_clock() * 1_000_000)
        async with self._store.read() as connection:
            if (
                await connection.execute(sa.select(table.c.name).where(table.c.expires_at < now).limit(1))
            ).first() is None:
                return
        async with self._store.write() as connection:
            query = sa.select(table).where(table.c.expires_at < now).with_for_update()
            for row in (await connection.execute(query)).all():
                key, amount = (row.level, row.name, row.period), row.leased_pico_usd
                await add(connection, key, row.window, spent=amount, leased=-amount)
                await connection.execute(
                    sa.delete(table).where(table.c.gateway_id == row.gateway_id, *matches(table, key, row.window))
                )
                self._recounts.append((self._clock() + _RECOUNT_AFTER_S, key, row.window, amount))

    async def _recount_due(self) -> None:
        """Give back what the ledger shows was not spent of a lost lease."""
        due = [recount for recount in self._recounts if recount[0] <= self._clock()]
        for recount in due:
            _, key, window, amount = recount
            async with self._store.write() as connection:
                row = await window_row(connection, key, window, lock=True)
                if row is not None:
                    paid = await billed(connection, key, window)
                    back = min(amount, max(0, row[0] - paid))
                    await add(connection, key, window, spent=-back)
            self._recounts.remove(recount)

    async def _write(self) -> None:
        try:
            await self.flush()
        except Unavailable:
            log.warning("budgets.not_written")

    def _window(self, period: str) -> str:
        day = dt.datetime.fromtimestamp(self._wall_clock(), dt.timezone.utc).strftime("%Y-%m-%d")
        return day if period == "day" else day[:7]


def _subjects(principal: Principal) -> tuple[tuple[str, str], ...]:
    return (
        ("key", principal.key_id),
        ("project", principal.project),
        ("organisation", principal.organisation),
    )
