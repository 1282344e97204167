"""What routes ask of the request: who calls, as the guard found out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from gateway.access.audit import Actor
from gateway.admin.guard import reach
from gateway.errors import Forbidden
from gateway.types import Principal

PRIVILEGED = frozenset({"models:admin", "keys:admin", "audit:read"})
"""Scopes that only a key which has them may give."""


def get_principal(request: Request) -> Principal:
    """Return the verified caller."""
    principal: Principal = request.state.principal
    return principal


def get_actor(request: Request) -> Actor:
    """Return the caller as the audit names it."""
    actor: Actor = request.state.actor
    return actor


def get_usage_reader(request: Request) -> Principal:
    """Return the caller for the usage routes: outside the operator's organisation, of one project."""
    principal = get_principal(request)
    if reach(principal) is None:
        return principal
    return Principal(
        principal.key_id,
        principal.project,
        principal.organisation,
        frozenset({"usage:read"}),
        principal.models,
        principal.tier,
        principal.test,
    )


def operator_only(principal: Principal) -> None:
    """Refuse who is not of the operator's organisation. Raises ``Forbidden``."""
    if reach(principal) is not None:
        raise Forbidden("Only the operator may do this.")


Caller = Annotated[Principal, Depends(get_principal)]
By = Annotated[Actor, Depends(get_actor)]
