"""Sleeping to an absolute time with better than a millisecond's precision, without spinning.

Event loops round their timers to a millisecond, which at 2,000 requests a second would send in
pairs. Linux's timerfd wakes the loop's ``epoll`` at the very moment; elsewhere the loop's own timer
is used.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = 0o4000
_TFD_CLOEXEC = 0o2000000
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class PreciseTimer:
    """``await timer.until(monotonic_ns)``; a context manager that closes its descriptor."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._future: asyncio.Future[None] | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> PreciseTimer:
        if sys.platform == "linux":
            self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._expired)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    async def until(self, when_ns: int) -> None:
        """Return at ``when_ns`` on the monotonic clock, or at once if that has passed."""
        now = time.monotonic_ns()
        if when_ns <= now:
            await asyncio.sleep(0)
            return
        if self._descriptor < 0:
            await asyncio.sleep((when_ns - now) / 1e9)
            return
        seconds, nanoseconds = divmod(when_ns, 1_000_000_000)
        setting = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        self._future = asyncio.get_running_loop().create_future()
        if self._libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._future

    def _expired(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
