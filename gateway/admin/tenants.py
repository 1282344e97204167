"""``/admin/organisations``, ``/admin/projects``, ``/admin/tiers``, ``/admin/limits``, ``/admin/budgets``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from fastapi import APIRouter, Query

from gateway.access.budgets import Budgets
from gateway.access.key import instant
from gateway.access.keys import Keys
from gateway.access.limits import Level, Limits
from gateway.access.policy import PICO, Budget, BudgetLevel, Period, Policies
from gateway.access.tenants import Tenants
from gateway.admin.caller import By, Caller, operator_only
from gateway.admin.guard import reach
from gateway.admin.schemas import NewBudget, NewOrganisation, NewProject, show_budget
from gateway.errors import NotFound
from gateway.types import Principal

_After = Annotated[str, Query(max_length=64)]
_AfterSubject = Annotated[str, Query(max_length=192, description="`next` of the page before.")]
_Limit = Annotated[int, Query(ge=1, le=1000)]


def create_tenants_router(tenants: Tenants) -> APIRouter:
    """Return the routes of organisations and projects."""
    router = APIRouter(tags=["tenants"])

    @router.get("/organisations", summary="List organisations")
    async def organisations(principal: Caller, after: _After = "", limit: _Limit = 100) -> dict[str, Any]:
        own = reach(principal)
        names = await tenants.organisations(after=after, limit=limit) if own is None else [own]
        return {"organisations": names}

    @router.post("/organisations", status_code=201, summary="Make an organisation")
    async def create_organisation(body: NewOrganisation, principal: Caller, actor: By) -> dict[str, Any]:
        operator_only(principal)
        await tenants.create_organisation(body.name, actor)
        return {"name": body.name}

    @router.get("/projects", summary="List projects")
    async def projects(principal: Caller, after: _After = "", limit: _Limit = 100) -> dict[str, Any]:
        found = await tenants.projects(organisation=reach(principal), after=after, limit=limit)
        return {
            "projects": [
                {"name": project.name, "organisation": project.organisation, "created_at": instant(project.created_at)}
                for project in found
            ]
        }

    @router.post("/projects", status_code=201, summary="Make a project")
    async def create_project(body: NewProject, principal: Caller, actor: By) -> dict[str, Any]:
        organisation = body.organisation or principal.organisation
        if reach(principal) not in (None, organisation):
            raise NotFound("There is no such organisation.", param="organisation")
        await tenants.create_project(body.name, organisation, actor)
        return {"name": body.name, "organisation": organisation}

    return router


class _Subjects:
    """Whose limits and budgets a caller may see and set."""

    def __init__(self, keys: Keys, tenants: Tenants) -> None:
        self._keys = keys
        self._tenants = tenants

    async def check(self, principal: Principal, level: str, name: str) -> None:
        """Raise ``NotFound`` for what the caller does not reach, ``Forbidden`` for what is the operator's to set."""
        own = reach(principal)
        if own is None:
            return
        if level == "key":
            organisation: str | None = (await self._keys.get(name)).organisation
        elif level == "project":
            organisation = await self._tenants.organisation_of(name)
        else:
            operator_only(principal)
            return
        if organisation != own:
            raise NotFound(f"There is no such {level}.")

    async def reachable(self, principal: Principal, subjects: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return those of ``subjects`` (level and name) that the caller may see."""
        own = reach(principal)
        if own is None:
            return set(subjects)
        names = {level: {name for other, name in subjects if other == level} for level in ("key", "project")}
        keys = await self._keys.owned(names["key"], own)
        projects = await self._tenants.owned(names["project"], own)
        seen = {("key", name) for name in keys} | {("project", name) for name in projects} | {("organisation", own)}
        return {subject for subject in subjects if subject in seen or subject[0] == "model"}


def create_policy_router(policies: Policies, budgets: Budgets, keys: Keys, tenants: Tenants) -> APIRouter:
    """Return the routes of tiers, limits and budgets."""
    router = APIRouter(tags=["policy"])
    subjects = _Subjects(keys, tenants)

    @router.get("/tiers", summary="List tiers")
    async def list_tiers() -> dict[str, Any]:
        policy = await policies.refresh()
        return {"tiers": {name: _shown(limits) for name, limits in sorted(policy.tiers.items())}}

    @router.put("/tiers/{name}", summary="Define a tier; `default` is the one of keys without another")
    async def set_tier(name: str, body: Limits, principal: Caller, actor: By) -> dict[str, Any]:
        operator_only(principal)
        await policies.set_tier(name, body, actor)
        return {"name": name, **_shown(body)}

    @router.delete("/tiers/{name}", summary="Remove a tier; its keys fall to `default`")
    async def remove_tier(name: str, principal: Caller, actor: By) -> dict[str, Any]:
        operator_only(principal)
        await policies.remove_tier(name, actor)
        return {"name": name, "removed": True}

    @router.get("/limits", summary="List limits of keys, projects, organisations and models")
    async def list_limits(principal: Caller, after: _AfterSubject = "", limit: _Limit = 100) -> dict[str, Any]:
        policy = await policies.refresh()
        chosen, following = _page(await subjects.reachable(principal, policy.rules.keys()), after, limit)
        shown = [{"level": level, "name": name, **_shown(policy.rules[level, name])} for level, name in chosen]
        return {"limits": shown, "next": following}

    @router.put("/limits/{level}/{name}", summary="Limit all calls of a key, project, organisation or model")
    async def set_limit(level: Level, name: str, body: Limits, principal: Caller, actor: By) -> dict[str, Any]:
        await subjects.check(principal, level, name)
        await policies.set_rule(level, name, body, actor)
        return {"level": level, "name": name, **_shown(body)}

    @router.delete("/limits/{level}/{name}", summary="Remove a limit")
    async def remove_limit(level: Level, name: str, principal: Caller, actor: By) -> dict[str, Any]:
        await subjects.check(principal, level, name)
        await policies.remove_rule(level, name, actor)
        return {"level": level, "name": name, "removed": True}

    @router.get("/budgets", summary="List budgets and how they stand")
    async def list_budgets(principal: Caller, after: _AfterSubject = "", limit: _Limit = 100) -> dict[str, Any]:
        policy = await policies.refresh()
        chosen, following = _page(await subjects.reachable(principal, policy.budgets.keys()), after, limit)
        return {"budgets": [show_budget(state) for state in await budgets.states(chosen)], "next": following}

    @router.put("/budgets/{level}/{name}/{period}", summary="Set what may be spent in a day or month (UTC)")
    async def set_budget(
        level: BudgetLevel, name: str, period: Period, body: NewBudget, principal: Caller, actor: By
    ) -> dict[str, Any]:
        await subjects.check(principal, level, name)
        await policies.set_budget(Budget(level, name, period, int(body.limit_usd * PICO)), actor)
        states = await budgets.states([(level, name)])
        return next(show_budget(state) for state in states if state.budget.period == period)

    @router.delete("/budgets/{level}/{name}/{period}", summary="Remove a budget")
    async def remove_budget(
        level: BudgetLevel, name: str, period: Period, principal: Caller, actor: By
    ) -> dict[str, Any]:
        await subjects.check(principal, level, name)
        await policies.remove_budget(level, name, period, actor)
        return {"level": level, "name": name, "period": period, "removed": True}

    return router


def _page(subjects: Collection[tuple[str, str]], after: str, limit: int) -> tuple[list[tuple[str, str]], str | None]:
    """Up to ``limit`` subjects that come after ``after`` (``level/name``), and after what the next page begins."""
    found = sorted(subject for subject in subjects if "/".join(subject) > after)
    return found[:limit], "/".join(found[limit - 1]) if len(found) > limit else None


def _shown(limits: Limits) -> dict[str, Any]:
    return limits.model_dump(exclude_none=True)
