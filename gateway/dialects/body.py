"""Reading a request's body: within its limit, in time, and decompressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.errors import ClientClosed, ClientTimeout, Malformed, TooLarge, Unavailable, UnsupportedMediaType
from gateway.inflating import IN_THREAD_BYTES, inflate

Receive = Callable[[], Awaitable[Any]]

LONG_BODY = 2**17
"""Bytes of JSON, or of typed tensors, from which on decoding is worth a thread (about 2 ms)."""

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def this_task() -> asyncio.Task[Any]:
    """The running task. Raises ``RuntimeError`` outside of one."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("not in a task")
    return task


class BodyMemory:
    """What the large bodies of all requests may take together, so that many at once cannot take all there is.

    Bodies that come in one piece, which is at most what a connection's buffer holds, are not counted.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def share(self) -> BodyShare:
        """What one request takes of it; to be released when its body is not needed any more."""
        return BodyShare(self)


class BodyShare:
    """One request's part of a :class:`BodyMemory`."""

    __slots__ = ("_memory", "_taken")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._taken = 0

    def take(self, size: int) -> None:
        """Count ``size`` bytes. Raises ``Unavailable``."""
        memory = self._memory
        if memory.used + size > memory.limit:
            raise Unavailable(
                "too many large bodies are being received", retry_after_s=1.0, headers={"Connection": "close"}
            )
        memory.used += size
        self._taken += size

    def release(self) -> None:
        """Give everything back."""
        self._memory.used -= self._taken
        self._taken = 0


async def read_body(
    receive: Receive, headers: Mapping[str, str], limit: int, timeout_s: float, share: BodyShare
) -> bytes:
    """The decompressed body; what it takes of the common memory is counted in ``share``.

    Raises ``TooLarge`` (before reading, if Content-Length says so), ``ClientTimeout``,
    ``ClientClosed``, ``UnsupportedMediaType``, ``Malformed``, ``Unavailable``.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""} and encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not supported; use gzip or deflate")
    declared = headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes", headers={"Connection": "close"})
    raw = await _read(receive, limit, timeout_s, share)
    if encoding not in _WINDOW_BITS:
        return raw
    if len(raw) < IN_THREAD_BYTES:
        body = _decompress(raw, encoding, limit)
    else:
        body = await asyncio.to_thread(_decompress, raw, encoding, limit)
    share.take(len(body))
    return body


async def _read(receive: Receive, limit: int, timeout_s: float, share: BodyShare) -> bytes:
    # One timer for the whole body; most bodies are there already when it is armed.
    task = this_task()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, expire)
    try:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientClosed("the client went away")
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > limit:
                raise TooLarge(f"the body is larger than {limit} bytes", headers={"Connection": "close"})
            return body
        parts, size = [body], len(body)
        share.take(size)
        while message.get("more_body", False):
            if size > limit:
                raise TooLarge(f"the body is larger than {limit} bytes", headers={"Connection": "close"})
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientClosed("the client went away")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            share.take(len(parts[-1]))
        if size > limit:
            raise TooLarge(f"the body is larger than {limit} bytes", headers={"Connection": "close"})
        return b"".join(parts)
    except asyncio.CancelledError:
        if expired:
            raise ClientTimeout("the body did not arrive in time", headers={"Connection": "close"}) from None
        raise
    finally:
        timer.cancel()


def _decompress(raw: bytes, encoding: str, limit: int) -> bytes:
    try:
        return _inflate(raw, _WINDOW_BITS[encoding], limit)
    except zlib.error as error:
        if encoding != "deflate":
            raise Malformed(f"the body is not valid {encoding}") from error
    try:  # some clients send raw deflate (RFC 1951) under that name
        return _inflate(raw, -15, limit)
    except zlib.error as error:
        raise Malformed("the body is not valid deflate") from error


def _inflate(raw: bytes, window_bits: int, limit: int) -> bytes:
    stream = zlib.decompressobj(window_bits)
    body = inflate(stream, raw, limit)
    if body is None:
        raise TooLarge(f"the decompressed body is larger than {limit} bytes")
    if not stream.eof:
        raise Malformed("the compressed body is truncated")
    if stream.unused_data:
        raise Malformed("bytes follow the compressed body")
    return body
