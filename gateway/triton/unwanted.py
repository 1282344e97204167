"""Calls to a Triton whose callers have gone, on servers that must not be told.

A Triton before 25.05 may crash when an inference over gRPC is cancelled as its answer is written, and with it go all
others' requests (docs/decisions/0008). There nothing is cancelled: what nobody waits for runs to its end, and its
answers are dropped.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc.aio

from gateway.errors import DeadlineExceeded
from gateway.timeouts import timeout

PATIENCE_S = 60.0
"""What does not end by itself within that time, an endless stream, is cancelled after all."""
_CLOSING_S = 2.0


def late() -> DeadlineExceeded:
    """The deadline of an inference passed."""
    return DeadlineExceeded("the deadline passed before the model answered")


def takes_cancellation(version: str, since: str) -> bool:
    """Whether a Triton of ``version`` ("2.51.0") may be told of cancellations: those from ``since`` ("2.58") on."""
    found = _numbers(version)
    return bool(found) and found >= _numbers(since)


def _numbers(version: str) -> list[int]:
    matched = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in matched[0].split(".")] if matched else []


class Unwanted:
    """The calls to one server that nobody waits for any more."""

    def __init__(self) -> None:
        self._calls: dict[Any, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    async def next(self, call: Any, timeout_s: float | None) -> Any:
        """The answer of ``call``, or the next part of its stream (``grpc.aio.EOF``: it has ended).

        Whoever stops waiting leaves the call to itself. Raises ``DeadlineExceeded`` and ``grpc.aio.AioRpcError``.
        """
        answer = asyncio.ensure_future(_next(call))
        try:
            await asyncio.wait({answer}, timeout=timeout_s)
        except asyncio.CancelledError:
            self.leave(call, answer)
            raise
        if not answer.done():
            self.leave(call, answer)
            raise late()
        return answer.result()

    def leave(self, call: Any, answer: asyncio.Future[Any] | None = None) -> None:
        """Nobody wants ``call`` any more, of which ``answer`` is being waited for. The first time counts."""
        if call not in self._calls:
            self._calls[call] = asyncio.create_task(_end(call, answer))
            self._calls[call].add_done_callback(lambda _: self._calls.pop(call))

    async def close(self) -> None:
        """Give what is left a moment to end; then it is cancelled."""
        left = list(self._calls.values())
        if left:
            await asyncio.wait(left, timeout=_CLOSING_S)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _next(call: Any) -> Any:
    return await (call.read() if hasattr(call, "read") else call)


async def _end(call: Any, answer: asyncio.Future[Any] | None) -> None:
    try:
        async with timeout(PATIENCE_S):
            message = await answer if answer is not None else None
            while hasattr(call, "read") and message is not grpc.aio.EOF:
                message = await call.read()
    except (grpc.aio.AioRpcError, asyncio.TimeoutError):
        pass
    finally:
        call.cancel()  # changes nothing where it has ended
