"""Everything that decides who may do what, put together for one gateway."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.access.admission import Admission, Estimate
from gateway.access.audit import Actor, Audit
from gateway.access.authenticator import Authenticator
from gateway.access.budgets import Budgets
from gateway.access.keys import Keys
from gateway.access.policy import Policies
from gateway.access.presence import Presence
from gateway.access.tenants import Tenants
from gateway.access.throttle import Refusals
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.types import Call

if TYPE_CHECKING:
    from gateway.access.shared import SharedLimiter


class ModelChanges:
    """Writes who loaded and unloaded which model."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def begin(self, call: Call, action: str, model: str) -> None:
        """Write that ``call``'s caller is about to do ``action`` to ``model``. Raises ``Unavailable``: then he may not.

        What became of it is another record, :meth:`changed`. If that one cannot be written, this one stands.
        """
        await self.changed(call, action, model, result="begun", details={})

    async def changed(self, call: Call, action: str, model: str, *, result: str, details: dict[str, str]) -> None:
        """Write that ``call``'s caller did ``action`` to ``model``. Raises ``Unavailable``."""
        name = call.principal.key_id if call.principal is not None else ""
        actor = Actor(name, call.request_id, call.client_address)
        await self._audit.record(actor, action, model, result=result, details=dict(details))


@dataclass(slots=True, frozen=True)
class Access:
    """The parts, started."""

    audit: Audit
    keys: Keys
    tenants: Tenants
    policies: Policies
    budgets: Budgets
    authenticator: Authenticator
    admission: Admission
    shared: SharedLimiter | None


@asynccontextmanager
async def open_access(
    store: Store, settings: Settings, *, estimate: Estimate | None = None, gateway_id: str | None = None
) -> AsyncIterator[Access]:
    """Build the parts and run their background work; on exit everything is written and given back.

    ``estimate`` says what a request will cost, for the reservation in budgets. Raises
    ``AuditError``, ``PepperError`` and ``Unavailable``.
    """
    identity = gateway_id or f"{socket.gethostname()[:32]}-{os.getpid()}-{os.urandom(4).hex()}"
    audit = Audit(store, settings)
    keys = await Keys(store, audit, settings).open()
    policies = Policies(store, audit)
    budgets = Budgets(store, policies, identity, floor_usd=settings.budget_floor_usd)
    shared = None
    if settings.redis_url is not None:
        from gateway.access.shared import SharedLimiter  # noqa: PLC0415 - large to import

        shared = SharedLimiter(settings.redis_url.get_secret_value(), identity, timeout_s=settings.redis_timeout_s)
    tokens = None
    if settings.oidc_issuer is not None:
        from gateway.access.oidc import create_token_verifier  # noqa: PLC0415 - large to import

        tokens = create_token_verifier(settings, keys)
    authenticator = Authenticator(keys, settings, refusals=Refusals(audit), tokens=tokens)
    admission = Admission(policies, budgets, shared=shared, estimate=estimate)
    async with AsyncExitStack() as stack:
        parts: list[Presence | Policies | Budgets | Authenticator | SharedLimiter] = [
            Presence(audit, identity), policies, budgets, authenticator,
        ]  # fmt: skip
        for part in [*parts, shared] if shared is not None else parts:
            await part.start()
            stack.push_async_callback(part.stop)
        yield Access(audit, keys, Tenants(store, audit), policies, budgets, authenticator, admission, shared)
