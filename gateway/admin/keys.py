"""``/admin/keys``."""

from __future__ import annotations

import datetime as dt
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query

from gateway.access.key import DEFAULT_TIER, Key, KeySpec
from gateway.access.keys import Keys
from gateway.admin.caller import PRIVILEGED, By, Caller
from gateway.admin.guard import reach
from gateway.admin.schemas import KeyChanges, NewKey, Rotation, show_issued, show_key
from gateway.errors import Forbidden, Invalid, NotFound
from gateway.types import Principal


def create_keys_router(keys: Keys) -> APIRouter:
    """Return the routes below ``/keys``. A key of another organisation does not exist for the caller."""
    router = APIRouter(prefix="/keys", tags=["keys"])

    async def reachable(principal: Principal, key_id: str) -> Key:
        key = await keys.get(key_id)
        if reach(principal) not in (None, key.organisation):
            raise NotFound("There is no such key.")
        return key

    @router.get("", summary="List keys, without their secrets")
    async def list_keys(
        principal: Caller,
        project: str | None = None,
        after: Annotated[str, Query(max_length=32)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        found = await keys.page(organisation=reach(principal), project=project, after=after, limit=limit)
        now = time.time()
        following = found[-1].key_id if len(found) == limit else None
        return {"keys": [show_key(key, now) for key in found], "next": following}

    @router.post("", status_code=201, summary="Make a key; the answer is the one time it is shown")
    async def create(body: NewKey, principal: Caller, actor: By) -> dict[str, Any]:
        organisation = reach(principal)
        if organisation is not None and await keys.project_organisation(body.project) != organisation:
            raise NotFound("There is no such project.", param="project")
        _may_grant(principal, body.scopes, body.models)
        tier = body.tier or (DEFAULT_TIER if organisation is None else principal.tier)
        _may_charge(principal, tier, test=body.test)
        return show_issued(await keys.create(_spec(body, tier), actor), time.time())

    @router.get("/{key_id}", summary="Show a key")
    async def show(key_id: str, principal: Caller) -> dict[str, Any]:
        return show_key(await reachable(principal, key_id), time.time())

    @router.patch("/{key_id}", summary="Change a key's label, scopes, models, addresses, tier or expiry")
    async def change(key_id: str, body: KeyChanges, principal: Caller, actor: By) -> dict[str, Any]:
        key = await reachable(principal, key_id)
        models = body.models if "models" in body.model_fields_set else key.models
        _may_grant(principal, key.scopes, key.models)
        _may_grant(principal, body.scopes or (), models)
        if body.tier not in (None, key.tier):
            _may_charge(principal, body.tier)
        return show_key(await keys.update(key_id, _changes(body), actor), time.time())

    @router.post("/{key_id}/rotate", summary="Give a key a new secret; the old one works on for a while")
    async def rotate(key_id: str, body: Rotation, principal: Caller, actor: By) -> dict[str, Any]:
        key = await reachable(principal, key_id)
        _may_grant(principal, key.scopes, key.models)
        issued = await keys.rotate(key_id, actor, overlap_s=body.overlap_s, rotation=body.rotation)
        return show_issued(issued, time.time())

    @router.post("/{key_id}/revoke", summary="End a key for good")
    async def revoke(key_id: str, principal: Caller, actor: By) -> dict[str, Any]:
        await reachable(principal, key_id)
        return show_key(await keys.revoke(key_id, actor), time.time())

    @router.delete("/{key_id}", summary="End a key for good")
    async def delete(key_id: str, principal: Caller, actor: By) -> dict[str, Any]:
        await reachable(principal, key_id)
        return show_key(await keys.revoke(key_id, actor), time.time())

    return router


def _spec(body: NewKey, tier: str) -> KeySpec:
    return KeySpec(
        project=body.project,
        label=body.label,
        scopes=tuple(body.scopes),
        models=None if body.models is None else tuple(body.models),
        addresses=None if body.addresses is None else tuple(body.addresses),
        tier=tier,
        test=body.test,
        expires_at=None if body.expires_at is None else body.expires_at.timestamp(),
    )


def _changes(body: KeyChanges) -> dict[str, Any]:
    """Return the fields that were sent; only models, addresses and expiry may be taken away by null."""
    changes: dict[str, Any] = {}
    for name in body.model_fields_set:
        value = getattr(body, name)
        if value is None and name not in ("models", "addresses", "expires_at"):
            raise Invalid(f"{name} cannot be null.", param=name)
        if isinstance(value, dt.datetime):
            value = value.timestamp()
        changes[name] = tuple(value) if isinstance(value, list) else value
    return changes


def _may_grant(principal: Principal, scopes: list[str] | tuple[str, ...], models: Any) -> None:
    """Refuse to give, or to hold in hand, more than the caller has. Raises ``Forbidden``."""
    if PRIVILEGED.intersection(scopes) - principal.scopes:
        raise Forbidden("A key cannot give scopes that it lacks.")
    if principal.models is not None and (models is None or not principal.models.issuperset(models)):
        raise Forbidden("A key cannot give models that it may not use.")


def _may_charge(principal: Principal, tier: str | None, *, test: bool = False) -> None:
    """Refuse what takes a key out of the limits and the bill that the operator set. Raises ``Forbidden``."""
    if reach(principal) is None:
        return
    if test:
        raise Forbidden("Only the operator may make test keys.")
    if tier != principal.tier:
        raise Forbidden("A key can give no tier but its own.")
