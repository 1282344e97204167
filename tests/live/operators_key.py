"""The operator's first key for gateways of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from gateway.access.audit import Audit
from gateway.access.keys import Keys
from gateway.settings import Settings
from gateway.store.database import Store

PREFIX = "TIDEGATE_"


def bootstrap(environment: Mapping[str, str]) -> str:
    """What ``tidegate keys bootstrap`` does in this environment, without a process and its second of imports.

    It runs in a thread of its own, so that a test's event loop may run meanwhile.
    """
    values = {name.removeprefix(PREFIX).lower(): text for name, text in environment.items() if name.startswith(PREFIX)}
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _bootstrap(Settings(**values))).result()


async def _bootstrap(settings: Settings) -> str:
    store = await Store.open(settings)
    try:
        keys = await Keys(store, Audit(store, settings), settings).open()
        return str((await keys.bootstrap()).text)
    finally:
        await store.close()
