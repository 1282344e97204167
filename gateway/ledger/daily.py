"""Once a day: are the sums that bills are read from those of the records?"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.background import Background
from gateway.errors import Unavailable
from gateway.store.database import Store
from gateway.store.usage_daily import compare_day

log = structlog.get_logger(__name__)

_EVERY_S = 900.0


class DailyCheck:
    """Compares the sums of the day before (UTC) with its records. ``start`` and ``stop`` run it in the background."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time, every_s: float = _EVERY_S) -> None:
        self._store = store
        self._clock = clock
        self._every_s = every_s
        self._background = Background()
        self.checked: dt.date | None = None
        """The last day that was compared."""
        self.wrong = 0
        """Sums of that day that differed from its records."""

    async def start(self) -> None:
        """Begin."""
        self._background.every(self._every_s, self._check, "daily check")

    async def stop(self) -> None:
        """End."""
        await self._background.stop()

    async def check(self) -> None:
        """Compare the day before, unless that was done. Raises ``Unavailable``."""
        today = dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc).date()
        day = today - dt.timedelta(days=1)
        if day == self.checked:
            return
        async with self._store.read(patient=True) as connection:
            wrong = await compare_day(connection, day)
        self.checked, self.wrong = day, len(wrong)
        if wrong:
            log.error("ledger.sums_wrong", day=day.isoformat(), sums=len(wrong), first=wrong[0])

    async def _check(self) -> None:
        try:
            await self.check()
        except (Unavailable, SQLAlchemyError) as error:
            log.warning("ledger.sums_not_checked", error=type(error).__name__)
