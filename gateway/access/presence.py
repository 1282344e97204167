"""A gateway's word in the audit that it is there: at its start, every hour, and at its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from gateway.access.attendance import EVERY_S, PRESENT, STARTED, STOPPED, details
from gateway.access.audit import SYSTEM, Audit
from gateway.background import Background
from gateway.errors import Unavailable
from gateway.timeouts import timeout

log = structlog.get_logger(__name__)

_LOOK_S = 5.0
_STOP_S = 5.0


class Presence:
    """``start`` and ``stop`` run the background task. What cannot be written is tried again until it can."""

    def __init__(self, audit: Audit, gateway: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._gateway = gateway
        self._clock = clock
        self._written_at: float | None = None
        self._background = Background()

    async def start(self) -> None:
        """Write that this gateway began, now or as soon as the audit can be written."""
        await self.say()
        self._background.every(_LOOK_S, self.say, "presence")

    async def stop(self) -> None:
        """Write that it ended; a store that does not answer is not waited for."""
        await self._background.stop()
        if self._written_at is not None:
            with contextlib.suppress(Unavailable, asyncio.TimeoutError):
                async with timeout(_STOP_S):
                    await self._audit.record(SYSTEM, STOPPED, self._gateway)

    async def say(self) -> None:
        """Write that it is there, if that is due."""
        now = self._clock()
        if self._written_at is not None and now - self._written_at < EVERY_S:
            return
        action = STARTED if self._written_at is None else PRESENT
        try:
            await self._audit.record(SYSTEM, action, self._gateway, details=details())
        except Unavailable as error:
            log.warning("audit.presence_not_written", error=error.code)
            return
        self._written_at = now
