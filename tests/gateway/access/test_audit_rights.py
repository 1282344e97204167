"""The role that the operator's page gives to gateways on PostgreSQL: it adds to the audit and changes nothing there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from gateway.access.access import open_access
from gateway.access.key import KeySpec
from gateway.access.limits import Limits
from gateway.access.policy import Budget
from gateway.settings import Settings
from gateway.store.database import Store
from tests.gateway.access.support import make_principal
from tests.gateway.servers import copy_database

pytestmark = pytest.mark.database

PAGE = (Path(__file__).parents[3] / "docs" / "05-operator.md").read_text()
(ROLE_SQL,) = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
ROLE = "tidegate_gateway"
DENIED = "42501"
TAMPERING = (
    "UPDATE {} SET at = 1", "DELETE FROM {}", "TRUNCATE {}", "DROP TABLE {}", "ALTER TABLE {} DISABLE TRIGGER ALL",
    "DROP TRIGGER {}_insert_only ON {}",
)  # fmt: skip


@pytest.fixture
async def store(migrated_postgresql, postgresql, tmp_path):
    """The store as a gateway with that role opens it."""
    url = copy_database(postgresql, migrated_postgresql)
    await postgresql.execute(url, ROLE_SQL)
    settings = Settings(data_dir=tmp_path / "data", database_url=url.replace("//tests@", f"//{ROLE}@"))
    store = await Store.open(settings)
    yield store, settings
    await store.close()
    await postgresql.execute(url, f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


async def test_a_gateway_works_with_the_role(store):
    store, settings = store
    async with open_access(store, settings) as access:
        await access.tenants.ensure_project("web", "acme")
        issued = await access.keys.create(KeySpec("web"))
        await access.keys.rotate(issued.key.key_id)
        await access.policies.set_rule("project", "web", Limits(concurrency=1))
        await access.policies.remove_rule("project", "web")
        await access.policies.set_budget(Budget("project", "web", "day", 10**12))
        reservation = await access.budgets.reserve(make_principal(issued.key.key_id), 0.1)
        access.budgets.settle(reservation, 0.1)
        await access.budgets.flush(give_back=True)
        await access.keys.revoke(issued.key.key_id)
        found = await access.audit.verify()
        assert found.whole
        assert found.records >= 6


@pytest.mark.parametrize("table", ["audit_records", "audit_checkpoints"])
async def test_the_role_cannot_change_the_audit(store, table):
    store, settings = store
    async with open_access(store, settings) as access:
        before = await access.audit.records()
        for statement in TAMPERING:
            with pytest.raises(DBAPIError) as refused:
                async with store.write() as connection:
                    await connection.execute(sa.text(statement.format(table, table)))
            assert refused.value.orig.sqlstate == DENIED, statement
        assert await access.audit.records() == before
