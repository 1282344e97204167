"""Backup and restore as the operator's page says."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess

import pytest

from gateway.access import keyformat
from gateway.access.audit import Audit
from gateway.access.budgets import Budgets
from gateway.access.key import KeySpec
from gateway.access.keys import Keys
from gateway.access.pepper import PepperError
from gateway.access.policy import PICO, Budget, Policies
from gateway.ledger.ledger import Ledger
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.files import private_directory
from gateway.store.usage_daily import rebuild_daily
from tests.gateway.access.support import Clock
from tests.gateway.ledger.postgres import programs
from tests.gateway.ledger.support import CountingTriton, fetch, make_prices, make_principal, serve

NOON = 1795435200.0
"""2026-11-23 12:00 UTC."""


async def open_keys(settings):
    store = await Store.open(settings)
    audit = Audit(store, settings)
    return store, audit, await Keys(store, audit, settings).open()


def back_up(settings, folder, server, folder_of_programs):
    """A copy of the database: an SQLite file, or a dump."""
    if settings.database_url is None:
        source, target = sqlite3.connect(settings.data_dir / "tidegate.db"), sqlite3.connect(folder / "copy.db")
        with target:
            source.backup(target)
        source.close()
        target.close()
        return folder / "copy.db"
    name = settings.database_url.get_secret_value().split("@/")[1].partition("?")[0]
    dump = subprocess.run(
        [folder_of_programs / "pg_dump", "-h", server.folder, "-U", "tests", name], check=True, capture_output=True
    )
    (folder / "copy.sql").write_bytes(dump.stdout)
    return folder / "copy.sql"


def restore(copy, folder, server, folder_of_programs):
    """Settings of a new place with the copy in it."""
    private_directory(folder)
    if copy.suffix == ".db":
        shutil.copy(copy, folder / "tidegate.db")
        return Settings(data_dir=folder)
    url = server.create_database()
    name = url.split("@/")[1].partition("?")[0]
    subprocess.run(
        [folder_of_programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-h", server.folder, "-U", "tests", "-f", copy,
         name], check=True, capture_output=True,
    )  # fmt: skip
    return Settings(data_dir=folder, database_url=url)


async def test_a_backup_put_back_works_and_tells_what_is_missing(settings, request, require_program, tmp_path):
    server = request.getfixturevalue("postgresql") if settings.database_url else None
    folder_of_programs = programs(require_program) if settings.database_url else None
    store, audit, keys = await open_keys(settings)
    await keys.ensure_project("web", "acme")
    before = await keys.create(KeySpec("web"))
    copy = back_up(settings, tmp_path, server, folder_of_programs)  # while the store is open
    after = await keys.create(KeySpec("web"))
    await store.close()

    restored = restore(copy, tmp_path / "restored", server, folder_of_programs)
    with pytest.raises(PepperError):  # the pepper is not in the database
        await open_and_close(restored)
    for name in ("pepper", "audit.key", "audit.anchor"):
        shutil.copy(settings.data_dir / name, restored.data_dir / name)
    store, audit, keys = await open_keys(restored)
    try:
        assert await keys.verify(keyformat.parse(before.text)) is not None
        assert await keys.verify(keyformat.parse(after.text)) is None
        found = await audit.verify()
        assert found.finding is not None
        assert found.finding.sequence == 3  # the key made after the backup
        lines = audit.anchor_file.read_bytes().splitlines(keepends=True)
        audit.anchor_file.write_bytes(b"".join(lines[:2]))  # the anchor as it was at the backup
        assert (await audit.verify()).whole
        await keys.revoke(before.key.key_id)
        assert (await audit.verify()).whole
    finally:
        await store.close()


async def test_a_backup_taken_in_service_holds_usage_and_budgets_that_agree(
    settings, request, require_program, tmp_path
):
    server = request.getfixturevalue("postgresql") if settings.database_url else None
    folder_of_programs = programs(require_program) if settings.database_url else None
    store, audit, keys = await open_keys(settings)
    await keys.ensure_project("web", "acme")
    policies = Policies(store, audit)
    await policies.set_budget(Budget("project", "web", "day", 64 * PICO))
    wall = Clock(NOON)
    ledger = Ledger(settings, store, make_prices(m={"per_request": 0.25}), CountingTriton().statistics, clock=wall)
    budgets = Budgets(store, policies, "gateway", wall_clock=wall)
    await ledger.start()
    principal = make_principal("web")

    async def paid() -> None:
        reservation = await budgets.reserve(principal, 0.25)
        await serve(ledger, model="m", principal=principal)
        budgets.settle(reservation, 0.25)

    for _ in range(10):
        await paid()
    await ledger.flush()
    await budgets.flush()
    await paid()  # in the journal, and spent of a lease
    copy = back_up(settings, tmp_path, server, folder_of_programs)
    for _ in range(10):
        await paid()
    await ledger.stop()
    await budgets.stop()
    await store.close()

    restored = restore(copy, tmp_path / "restored", server, folder_of_programs)
    store = await Store.open(restored)
    try:
        assert await fetch(store, "SELECT state, count(*) FROM usage_records GROUP BY state") == [("completed", 10)]
        async with store.write() as connection:
            assert await rebuild_daily(connection) == []
        policies = Policies(store, audit)
        survivor = Budgets(store, policies, "another", wall_clock=wall)
        (state,) = await survivor.states()
        assert (state.spent_pico_usd, state.leased_pico_usd) == (10 * PICO // 4, PICO // 2)
        for _ in range(2):  # the lease of a gateway that is no more: spent, and then what the records say
            wall.forward(61)
            await survivor.flush()
        (state,) = await survivor.states()
        assert (state.spent_pico_usd, state.leased_pico_usd) == (10 * PICO // 4, 0)
    finally:
        await store.close()


async def open_and_close(settings) -> None:
    store = await Store.open(settings)
    try:
        await Keys(store, Audit(store, settings), settings).open()
    finally:
        await store.close()
