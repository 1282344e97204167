"""gRPC calls over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md): framing, compression, deadlines, status."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
import structlog

from gateway.http2 import headers
from gateway.http2.connection import Connection
from gateway.http2.frames import PROTOCOL_ERROR
from gateway.http2.headers import MAX_LIST_BYTES, Fields
from gateway.http2.stream import Stream
from gateway.inflating import IN_THREAD_BYTES, inflate

log = structlog.get_logger(__name__)

Trailers = Sequence[tuple[str, str]]

_STATUS_200 = b"\x88"  # the static table's entry
_HEAD = _STATUS_200 + headers.write(
    [("content-type", "application/grpc"), ("grpc-accept-encoding", "identity,deflate,gzip")]
)
_OK = headers.write([("grpc-status", "0")])
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CROWDED = "too many large messages are being received"
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_NAME = re.compile(rb":?[a-z0-9!#$%&'*+.^_`|~-]+")
_FORBIDDEN = re.compile(rb"[\0\r\n]")
_MESSAGE_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class StatusError(Exception):
    """Ends a call with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str, trailers: Trailers = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailers = trailers


@dataclass(slots=True, frozen=True, eq=False)
class Head:
    """What the header block of a call says."""

    path: str
    metadata: Mapping[str, str]
    """The last value of each name, without binary ones."""
    fields: Fields
    timeout_s: float | None = None
    encoding: bytes = b"identity"
    refusal: bytes | None = None
    """The HTTP status of what is no gRPC call."""
    broken: bool = False
    """It breaks HTTP/2's own rules."""
    too_large: bool = False


def read_head(fields: Fields) -> Head:
    """Made once for each header block that differs."""
    named = dict(fields)
    broken = any(
        (name[:1] == b":" and name not in _PSEUDO) or not _NAME.fullmatch(name) or _FORBIDDEN.search(value)
        for name, value in fields
    )
    refusal = None
    if named.get(b":method") != b"POST":
        refusal = b"405"
    elif not named.get(b"content-type", b"").startswith(b"application/grpc"):
        refusal = b"415"
    timeout = _TIMEOUT.fullmatch(named.get(b"grpc-timeout", b""))
    return Head(
        path=named.get(b":path", b"").decode("latin-1"),
        metadata={
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in fields
            if name[:1] != b":" and not name.endswith(b"-bin")
        },
        fields=fields,
        timeout_s=int(timeout[1]) * _UNIT_S[timeout[2]] if timeout else None,
        encoding=named.get(b"grpc-encoding", b"identity"),
        refusal=refusal,
        broken=broken or b":path" not in named,
        too_large=sum(len(name) + len(value) + 32 for name, value in fields) > MAX_LIST_BYTES,
    )


Unary = Callable[["RpcStream", bytes], Awaitable[bytes]]
Streaming = Callable[["RpcStream", AsyncIterator[bytes]], AsyncGenerator[bytes, None]]
Admit = Callable[["RpcStream"], Awaitable[bool]]


async def everybody(_stream: RpcStream) -> bool:
    """Admits all calls, as those of callers who are known."""
    return True


@dataclass(slots=True, frozen=True)
class Methods:
    """Handlers by path, ``/package.Service/Method``. They get and give serialised messages; to end a call with
    another status than OK they raise :class:`StatusError`.
    """

    unary: Mapping[str, Unary]
    streaming: Mapping[str, Streaming]
    admit: Admit = everybody
    """Awaited when a call's headers are there, before more of its message is taken than one window, or any of it
    inflated; raises :class:`StatusError` for who may not call. Says whether the caller is known: of others nothing
    is kept from one call to the next.
    """


class RpcStream(Stream):
    """One call, and what its handler knows of it."""

    def __init__(
        self, connection: Connection, number: int, head: Head, methods: Methods, max_message_bytes: int
    ) -> None:
        super().__init__(connection, number)
        self.head = head
        self.trailers: Trailers = ()
        """Sent with the status OK; set by the handler."""
        self.context: Any = None
        """What ``admit`` leaves for the handler."""
        self.admitted = False
        self._max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._messages: deque[tuple[bool, bytes]] = deque()
        """Whether each is compressed, and its bytes."""
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._head_sent = False
        self._since: float | None = None
        self._admit = methods.admit
        self._unary = methods.unary.get(head.path)
        if self._unary is None or head.broken or head.refusal or head.too_large:
            self._begin_other(methods.streaming.get(head.path))
        else:
            self._start(self._run_unary(self._unary))

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.connection.peer

    def _begin_other(self, streaming: Streaming | None) -> None:
        head = self.head
        if head.broken:
            self.reset(PROTOCOL_ERROR)
        elif head.refusal is not None:
            self.send(None, trailers=headers.write([(":status", head.refusal.decode())]))
        elif head.too_large:
            self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "the metadata is too large")
        elif streaming is None:
            self.fail(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        else:
            self._start(self._run_streaming(streaming))

    # --- what comes

    def on_data(self, data: bytes) -> None:
        """Collect messages."""
        buffer = self._buffer
        if not buffer and len(data) >= 5 and not data[0] and int.from_bytes(data[1:5], "big") == len(data) - 5:
            if len(data) - 5 > self._max_message_bytes:
                self._refuse_size(len(data) - 5)
                return
            if not self.ended:
                self.hold(len(data))
            self._take(False, data[5:])
            return
        buffer += data
        self.hold(len(data))
        while len(buffer) >= 5 and not self.finished:
            size = int.from_bytes(buffer[1:5], "big")
            if size > self._max_message_bytes:
                self._refuse_size(size)
                return
            if len(buffer) < 5 + size:
                return
            compressed, message = buffer[0], bytes(memoryview(buffer)[5 : 5 + size])
            del buffer[: 5 + size]
            self._take(bool(compressed), message)

    def _take(self, compressed: bool, message: bytes) -> None:
        if self._unary is None:
            self._wake()
        elif self._messages:
            self.fail(grpc.StatusCode.INTERNAL, "one message was expected")
            return
        self._messages.append((compressed, message))

    def _refuse_size(self, size: int) -> None:
        self.fail(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"Received message larger than max ({size} vs. {self._max_message_bytes})",
        )

    async def _plain(self, compressed: bool, message: bytes) -> bytes:
        """``message`` as its sender meant it. Raises :class:`StatusError`."""
        if not compressed:
            return message
        if len(message) < IN_THREAD_BYTES:
            plain = self._decompressed(message)
        else:
            plain = await asyncio.to_thread(self._decompressed, message)
        self.hold(len(plain))
        if self.connection.intake.crowded:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, _CROWDED)
        return plain

    def _decompressed(self, message: bytes) -> bytes:
        bits = _WINDOW_BITS.get(self.head.encoding)
        if bits is None:
            known = self.head.encoding == b"identity"
            code = grpc.StatusCode.INTERNAL if known else grpc.StatusCode.UNIMPLEMENTED
            raise StatusError(code, "messages are compressed with deflate or gzip, if at all")
        inflater = zlib.decompressobj(bits)
        try:
            plain = inflate(inflater, message, self._max_message_bytes)
        except zlib.error as error:
            raise StatusError(grpc.StatusCode.INTERNAL, "a message cannot be decompressed") from error
        if plain is None:
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "a message is too large when decompressed")
        if not inflater.eof or inflater.unused_data:
            raise StatusError(grpc.StatusCode.INTERNAL, "a compressed message ends too early, or too late")
        return plain

    def on_end(self) -> None:
        """Tell the handler."""
        if self._buffer:
            self.fail(grpc.StatusCode.INTERNAL, "a message ends too early")
        elif self._unary is not None and len(self._messages) != 1:
            self.fail(grpc.StatusCode.INTERNAL, "one message was expected")
        else:
            self._wake()

    def on_reset(self) -> None:
        """Cancel what is done for it."""
        self._cancel()

    def on_crowded(self) -> None:
        """Refuse it."""
        self.fail(grpc.StatusCode.UNAVAILABLE, _CROWDED)

    @property
    def wants_more(self) -> bool:
        """Part of a message is there, and none that is whole; of who is not admitted nothing more is wanted."""
        return self.admitted and not self._messages

    def check(self, now: float) -> None:
        """End a call whose message is late, or a stream whose deadline has passed."""
        if self._since is None:
            self._since = now
        waited = now - self._since
        if self._unary is None and self.head.timeout_s is not None and waited > self.head.timeout_s:
            self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
        elif not self.ended and (self._buffer or self._unary is not None):
            if waited > self.connection.limits.body_timeout_s:
                self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time")
        elif self._unary is None and self.head.timeout_s is None:
            self._since = None  # between two messages nothing is late

    # --- the handler

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    def _cancel(self) -> None:
        """End the handler. It may take its time, and counts as a stream until it is over."""
        task, self._task = self._task, None
        if task is None or task.done() or task is asyncio.current_task():
            return
        self.connection.orphans += 1
        task.add_done_callback(self._over)
        task.cancel()

    def _over(self, _task: asyncio.Task[None]) -> None:
        self.connection.orphans -= 1

    async def _enter(self) -> None:
        """Wait until the call is admitted. Raises :class:`StatusError`."""
        if await self._admit(self):
            self.connection.trust()
        self.admitted = True
        if self.held and not self.ended:
            self.connection.intake.extend(self)

    async def _run_unary(self, handle: Unary) -> None:
        try:
            await self._enter()
            if not self.ended:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            compressed, message = self._messages.popleft()
            reply = await handle(self, await self._plain(compressed, message) if compressed else message)
            self.release()
            size = len(reply)
            self.send(
                _HEAD,
                b"\0" + size.to_bytes(4, "big") + reply,
                _OK + headers.write(self.trailers) if self.trailers else _OK,
            )
        except StatusError as error:
            self.fail(error.code, error.message, error.trailers)
        except asyncio.CancelledError:
            self.fail(grpc.StatusCode.UNAVAILABLE, "the call was cancelled")
        except Exception:
            log.exception("grpc.handler_failed", path=self.head.path)
            self.fail(grpc.StatusCode.INTERNAL, "internal error")

    async def _run_streaming(self, handle: Streaming) -> None:
        replies = handle(self, self._received())
        try:
            await self._enter()
            async for reply in replies:
                self.send(None if self._head_sent else _HEAD, b"\0" + len(reply).to_bytes(4, "big") + reply)
                self._head_sent = True
                await self.drained()
            self.send(None if self._head_sent else _HEAD, trailers=_OK + headers.write(self.trailers))
        except StatusError as error:
            self.fail(error.code, error.message, error.trailers)
        except asyncio.CancelledError:
            self.fail(grpc.StatusCode.UNAVAILABLE, "the call was cancelled")
        except Exception:
            log.exception("grpc.handler_failed", path=self.head.path)
            self.fail(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            await replies.aclose()

    async def _received(self) -> AsyncIterator[bytes]:
        while True:
            while self._messages:
                compressed, message = self._messages.popleft()
                if not self._messages and not self._buffer:
                    self.release()
                self.connection.intake.extend(self)
                yield await self._plain(compressed, message)
            if self.ended:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, code: grpc.StatusCode, message: str, trailers: Trailers = ()) -> None:
        """Answer a status; whatever is being done is cancelled."""
        if self.finished:
            return
        self._buffer.clear()
        self._messages.clear()
        self.release()
        block = headers.write(
            [("grpc-status", str(code.value[0])), ("grpc-message", quote(message, safe=_MESSAGE_SAFE)), *trailers]
        )
        self.send(None, trailers=block if self._head_sent else _HEAD + block)
        self._cancel()
