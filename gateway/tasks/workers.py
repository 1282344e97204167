"""Threads that decode pictures and tokenise long texts, with a queue that knows how long it is."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from gateway.errors import DeadlineExceeded, Unavailable

T = TypeVar("T")

_WEIGHT = 0.1


class Workers:
    """``threads`` of ``executor``; with ``shed`` work that would be done too late is refused when it arrives."""

    def __init__(self, executor: Executor, threads: int, *, shed: bool = True) -> None:
        self._executor = executor
        self._threads = threads
        self._shed = shed
        self._pending = 0
        self._seconds = 0.0

    async def run(self, work: Callable[[], T], deadline_ns: int | None) -> T:
        """``work()`` in a thread. Raises ``Unavailable`` at once, or ``DeadlineExceeded`` instead of beginning late."""
        if self._shed and deadline_ns is not None:
            # One that is being worked on is half done on average.
            wait = self._pending / self._threads * self._seconds
            if wait > (deadline_ns - time.monotonic_ns()) / 1e9:
                retry = min(30.0, max(1.0, wait)) * random.uniform(1.0, 1.5)  # noqa: S311
                raise Unavailable("too many requests wait to be prepared", retry_after_s=retry)

        def timed() -> tuple[T, float]:
            if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                raise DeadlineExceeded("the deadline passed before the request was prepared")
            begin = time.monotonic()
            return work(), time.monotonic() - begin

        self._pending += 1
        try:
            result, seconds = await asyncio.get_running_loop().run_in_executor(self._executor, timed)
        finally:
            self._pending -= 1
        self._seconds += (seconds - self._seconds) * (_WEIGHT if self._seconds else 1.0)
        return result
