"""A gateway that does nothing but spend a budget: run as a process, and killed, by the tests."""

from __future__ import annotations

import asyncio
import sys

from gateway.access.audit import Audit
from gateway.access.budgets import Budgets
from gateway.access.policy import Policies
from gateway.errors import BudgetExceeded
from gateway.settings import Settings
from gateway.store.database import Store
from tests.gateway.access.support import make_principal


async def spend(name: str, cost_usd: float) -> None:
    settings = Settings()
    store = await Store.open(settings)
    policies = Policies(store, Audit(store, settings))
    await policies.refresh()
    budgets = Budgets(store, policies, name)
    await budgets.start()
    try:
        while True:
            reservation = await budgets.reserve(make_principal(), cost_usd)
            print("spent", flush=True)  # the answer has left: it was executed
            await asyncio.sleep(0.001)
            if reservation is not None:
                budgets.settle(reservation, cost_usd)
    except BudgetExceeded:
        print("refused", flush=True)
    finally:
        await budgets.stop()
        await store.close()


if __name__ == "__main__":
    asyncio.run(spend(sys.argv[1], float(sys.argv[2])))
