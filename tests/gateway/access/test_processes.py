"""Several gateways as processes on one database, one of them killed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import sqlalchemy as sa

from gateway.access.policy import PICO, Budget
from gateway.store.tables import budget_leases, budget_windows

pytestmark = pytest.mark.slow

LIMIT_USD, COST_USD = 2.0, 0.002


def start(settings, name):
    environment = {**os.environ, "TIDEGATE_DATA_DIR": str(settings.data_dir)}
    if settings.database_url is not None:
        environment["TIDEGATE_DATABASE_URL"] = settings.database_url.get_secret_value()
    command = [sys.executable, "-m", "tests.gateway.access.spender", name, str(COST_USD)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


async def test_gateways_killed_or_not_never_overspend(policies, keys, settings, store):
    await policies.set_budget(Budget("project", "web", "day", round(LIMIT_USD * PICO)))
    processes = [start(settings, f"gateway{number}") for number in range(3)]
    try:
        spent = [process.stdout.readline() for process in processes]  # all three are at it
        processes[0].kill()
        outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert spent == ["spent\n"] * 3
    granted = 3 + sum(output.count("spent") for output in outputs)
    assert granted * COST_USD <= LIMIT_USD + 1e-9
    assert [output[-1] for output in outputs[1:]] == ["refused"] * 2
    async with store.read() as connection:
        window = (await connection.execute(sa.select(budget_windows))).one()
        leases = (await connection.execute(sa.select(budget_leases.c.gateway_id))).scalars().all()
    by_survivors = 2 + sum(output.count("spent") for output in outputs[1:])
    assert window.spent_pico_usd >= round(by_survivors * COST_USD * PICO)
    assert set(leases) <= {"gateway0"}  # the survivors gave theirs back
    assert window.spent_pico_usd + window.leased_pico_usd <= round(LIMIT_USD * PICO)
