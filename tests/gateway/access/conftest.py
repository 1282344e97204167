"""Keys, policies, budgets and audit on both databases, with clocks that tests move."""

from __future__ import annotations

import pytest

from gateway.access.audit import Audit
from gateway.access.keys import Keys
from gateway.access.policy import Policies
from tests.gateway.access.support import Clock
from tests.gateway.servers import (
    migrated_postgresql,
    migrated_settings,
    migrated_sqlite,
    own_postgresql,
    postgresql,
    redis_server,
    store,
)

__all__ = [
    "migrated_postgresql",
    "migrated_settings",
    "migrated_sqlite",
    "own_postgresql",
    "postgresql",
    "redis_server",
    "store",
]


@pytest.fixture
def settings(migrated_settings):
    return migrated_settings


@pytest.fixture
def clock():
    """Monotonic seconds."""
    return Clock(1000.0)


@pytest.fixture
def wall():
    """Seconds since the epoch: 2026-11-23 12:00 UTC."""
    return Clock(1795435200.0)


@pytest.fixture
def audit(store, settings, wall):
    return Audit(store, settings, clock=wall)


@pytest.fixture
async def keys(store, audit, settings, wall):
    keys = await Keys(store, audit, settings, clock=wall).open()
    await keys.ensure_project("web", "acme")
    return keys


@pytest.fixture
async def policies(store, audit, wall):
    policies = Policies(store, audit, clock=wall)
    await policies.refresh()
    return policies
