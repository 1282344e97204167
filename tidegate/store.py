"""The store that the settings name, for commands that work straight on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from gateway.access.audit import AuditError
from gateway.access.pepper import PepperError
from gateway.errors import GatewayError
from gateway.settings import Settings
from gateway.store.database import Store, StoreError, database_url
from tidegate.console import fail, load_settings

_Result = TypeVar("_Result")


def with_store(work: Callable[[Store, Settings], Awaitable[_Result]], *, create: bool = False) -> _Result:
    """Run ``work`` on the store that the environment names; a failure is one line and exit code 1.

    A database that does not exist is made only with ``create``: a command that reads in the wrong folder leaves
    nothing there.
    """
    settings = load_settings()

    async def run() -> _Result:
        if not create:
            _require_database(settings)
        store = await Store.open(settings)
        try:
            return await work(store, settings)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except GatewayError as error:
        fail(error.message)
    except (StoreError, PepperError, AuditError) as error:
        fail(str(error))


def _require_database(settings: Settings) -> None:
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
        raise StoreError(f"there is no database {url.database}: TIDEGATE_DATA_DIR names the folder that holds it")
