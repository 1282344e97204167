"""What goes on beside the calls: loops that an error does not end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)

_AFTER_ERROR_S = 1.0
"""Pause after an error that a step did not handle, at least."""


class Background:
    """The loops of one part of the gateway, ended together. Needs a running event loop."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def every(self, seconds: float, step: Callable[[], Awaitable[object]], name: str, *, jitter: float = 0.0) -> None:
        """Begin to await ``step()`` again and again, ``seconds`` (± the part ``jitter``) after it last ended.

        A step handles what it expects; anything else is a defect, which is logged under ``name``, and the next step
        is done all the same: a loop that died in silence would be noticed by its effects, days later.
        """
        self._tasks.append(asyncio.create_task(_repeat(seconds, step, name, jitter), name=name))

    async def stop(self) -> None:
        """End all of them, in the middle of a step too."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(seconds: float, step: Callable[[], Awaitable[object]], name: str, jitter: float) -> None:
    while True:
        await asyncio.sleep(seconds * random.uniform(1 - jitter, 1 + jitter))  # noqa: S311
        try:
            await step()
        except Exception:
            log.exception("background.step_failed", loop=name)
            await asyncio.sleep(_AFTER_ERROR_S)
