"""Tiers, limit rules and budgets: how they are set (audited), and how gateways learn of a change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import sqlalchemy as sa
import structlog
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.access.audit import SYSTEM, Actor, Audit
from gateway.access.key import DEFAULT_TIER, check_model, check_name
from gateway.access.limits import Level, Limits
from gateway.background import Background
from gateway.errors import Invalid, NotFound, Unavailable
from gateway.store.database import Store
from gateway.store.tables import api_keys, budgets, limit_rules, organisations, projects, revisions, tiers

log = structlog.get_logger(__name__)

Period = Literal["day", "month"]
BudgetLevel = Literal["key", "project", "organisation"]

PICO = 10**12
_MAX_BUDGET = 10**18
_SUBJECT = "policy"


@dataclass(slots=True, frozen=True)
class Budget:
    """What a key, project or organisation may spend in a day or a month (UTC)."""

    level: BudgetLevel
    name: str
    period: Period
    limit_pico_usd: int


@dataclass(slots=True, frozen=True)
class Policy:
    """Everything set, as of one revision."""

    revision: int = -1
    tiers: MappingProxyType[str, Limits] = field(default_factory=lambda: MappingProxyType({}))
    rules: MappingProxyType[tuple[str, str], Limits] = field(default_factory=lambda: MappingProxyType({}))
    budgets: MappingProxyType[tuple[str, str], tuple[Budget, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def tier(self, name: str) -> Limits:
        """Return a tier's limits; an unknown tier has those of ``default``."""
        return self.tiers.get(name) or self.tiers.get(DEFAULT_TIER) or _NO_LIMITS


_NO_LIMITS = Limits()


class Policies:
    """Reads and changes what is set. ``start`` and ``stop`` run the poll for others' changes."""

    def __init__(
        self, store: Store, audit: Audit, *, poll_s: float = 2.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._audit = audit
        self._poll_s = poll_s
        self._clock = clock
        self._background = Background()
        self.current = Policy()
        """What is set, as this gateway knows it: at most a poll behind."""

    async def start(self) -> None:
        """Read what is set, and begin to watch for changes. Raises ``Unavailable``.

        A store that is not open yet is read when it opens: no call is admitted without limits and budgets known.
        """
        await self._store.when_open(self.refresh)
        self._background.every(self._poll_s, self._poll, "policy poll")

    async def stop(self) -> None:
        """End the poll."""
        await self._background.stop()

    async def refresh(self) -> Policy:
        """Read again if something changed. Raises ``Unavailable``."""
        async with self._store.read() as connection:
            revision = await _revision(connection)
            if revision != self.current.revision:
                self.current = await _read(connection, revision)
        return self.current

    # --- changes, each audited

    async def set_tier(self, name: str, limits: Limits, actor: Actor = SYSTEM) -> None:
        """Define a tier. Raises ``Invalid``."""
        check_name("name", name)
        await self._set(tiers, {"name": name}, {"limits": limits.model_dump_json(exclude_none=True)},
                        actor, "tier.set", name, limits.model_dump(exclude_none=True))  # fmt: skip

    async def remove_tier(self, name: str, actor: Actor = SYSTEM) -> None:
        """Remove a tier: its keys fall to ``default``. Raises ``NotFound``."""
        await self._remove(tiers, {"name": name}, actor, "tier.remove", name)

    async def set_rule(self, level: Level, name: str, limits: Limits, actor: Actor = SYSTEM) -> None:
        """Limit a key, a project, an organisation or a model. Raises ``Invalid``, ``NotFound``."""
        if limits.max_priority is not None or limits.max_timeout_s is not None:
            raise Invalid("max_priority and max_timeout_s belong to tiers.", param="max_priority")
        if level == "model":
            check_model("name", name)
        else:
            await self._check_subject(level, name)
        await self._set(limit_rules, {"level": level, "name": name},
                        {"limits": limits.model_dump_json(exclude_none=True)},
                        actor, "limit.set", f"{level}/{name}", limits.model_dump(exclude_none=True))  # fmt: skip

    async def remove_rule(self, level: Level, name: str, actor: Actor = SYSTEM) -> None:
        """Remove a rule. Raises ``NotFound``."""
        await self._remove(limit_rules, {"level": level, "name": name}, actor, "limit.remove", f"{level}/{name}")

    async def set_budget(self, budget: Budget, actor: Actor = SYSTEM) -> None:
        """Set what may be spent in a period. Raises ``Invalid``, ``NotFound``."""
        if not 0 <= budget.limit_pico_usd <= _MAX_BUDGET:
            raise Invalid("limit_usd must be between 0 and 1,000,000.", param="limit_usd")
        await self._check_subject(budget.level, budget.name)
        key = {"level": budget.level, "name": budget.name, "period": budget.period}
        await self._set(budgets, key, {"limit_pico_usd": budget.limit_pico_usd}, actor, "budget.set",
                        "/".join(key.values()), {"limit_pico_usd": budget.limit_pico_usd})  # fmt: skip

    async def remove_budget(self, level: BudgetLevel, name: str, period: Period, actor: Actor = SYSTEM) -> None:
        """Remove a budget. Raises ``NotFound``."""
        key = {"level": level, "name": name, "period": period}
        await self._remove(budgets, key, actor, "budget.remove", "/".join(key.values()))

    # --- inner

    async def _check_subject(self, level: str, name: str) -> None:
        column = {"key": api_keys.c.key_id, "project": projects.c.name, "organisation": organisations.c.name}[level]
        async with self._store.read() as connection:
            if (await connection.execute(sa.select(column).where(column == name))).first() is None:
                raise NotFound(f"There is no such {level}.", param="name")

    async def _set(
        self,
        table: sa.Table,
        key: dict[str, str],
        values: dict[str, Any],
        actor: Actor,
        action: str,
        object_: str,
        details: dict[str, Any],
    ) -> None:
        async with self._audit.operation(actor, action, object_) as operation:
            where = [table.c[name] == value for name, value in key.items()]
            changed = await operation.connection.execute(sa.update(table).where(*where).values(**values))
            if changed.rowcount == 0:
                now = int(self._clock() * 1_000_000)
                await operation.connection.execute(sa.insert(table).values(**key, **values, created_at=now))
            await _raise_revision(operation.connection)
            operation.details.update(details)
        await self.refresh()

    async def _remove(self, table: sa.Table, key: dict[str, str], actor: Actor, action: str, object_: str) -> None:
        async with self._audit.operation(actor, action, object_) as operation:
            where = [table.c[name] == value for name, value in key.items()]
            removed = await operation.connection.execute(sa.delete(table).where(*where))
            if removed.rowcount == 0:
                raise NotFound("There is nothing of this name.")
            await _raise_revision(operation.connection)
        await self.refresh()

    async def _poll(self) -> None:
        try:
            await self.refresh()
        except Unavailable:
            return  # what is known goes on to hold
        except (ValidationError, ValueError) as error:
            log.error("policy.unreadable", error=type(error).__name__)


async def _revision(connection: AsyncConnection) -> int:
    query = sa.select(revisions.c.revision).where(revisions.c.subject == _SUBJECT)
    return int((await connection.execute(query)).scalar() or 0)


async def _raise_revision(connection: AsyncConnection) -> None:
    # The audit's lock is held: nobody else is here at the same time.
    revision = await _revision(connection)
    if revision:
        statement: sa.Executable = (
            sa.update(revisions).where(revisions.c.subject == _SUBJECT).values(revision=revision + 1)
        )
    else:
        statement = sa.insert(revisions).values(subject=_SUBJECT, revision=1)
    await connection.execute(statement)


async def _read(connection: AsyncConnection, revision: int) -> Policy:
    tier_rows = (await connection.execute(sa.select(tiers))).all()
    rule_rows = (await connection.execute(sa.select(limit_rules))).all()
    found: dict[tuple[str, str], tuple[Budget, ...]] = {}
    for row in (await connection.execute(sa.select(budgets).order_by(budgets.c.period))).all():
        budget = Budget(row.level, row.name, row.period, row.limit_pico_usd)
        found[row.level, row.name] = (*found.get((row.level, row.name), ()), budget)
    return Policy(
        revision,
        MappingProxyType({row.name: Limits.model_validate_json(row.limits) for row in tier_rows}),
        MappingProxyType({(row.level, row.name): Limits.model_validate_json(row.limits) for row in rule_rows}),
        MappingProxyType(found),
    )
