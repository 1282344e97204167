"""The server's side of one HTTP/2 connection: frames in and out, flow control, limits (RFC 9113).

What a client may make this process hold is bounded: streams by ``max_streams`` (a cancelled one counts until its
work has ended), header blocks by their size, bodies by windows that open further only for the oldest stream
once ``held_limit`` is reached, answers because nothing is read from a client that does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from gateway.http2 import frames as f
from gateway.http2.frames import ConnectionFault
from gateway.http2.headers import MAX_LIST_BYTES, MAX_READ_BYTES, HeaderReader
from gateway.http2.intake import CONNECTION_WINDOW, LARGE_BLOCK, WINDOW, Intake, Memory, Resets
from gateway.http2.outlet import Outlet
from gateway.http2.stream import Limits, Stream

MAX_FRAME = 64 * 1024
MAX_CONTINUATIONS = 16


class Connection(asyncio.Protocol):
    """One client. ``open_stream(connection, number, head)`` makes the stream of each request."""

    def __init__(
        self,
        limits: Limits,
        reader: HeaderReader[Any],
        open_stream: Callable[[Connection, int, Any], Stream],
        connections: set[Connection],
        memory: Memory,
    ) -> None:
        self.limits = limits
        self.peer = ""
        """The client's address."""
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[Stream, None] = {}
        """Streams with something to send that a window or the socket does not take yet."""
        self.orphans = 0
        """Handlers that still run for streams that are over; kept by the streams."""
        self.window_out = f.DEFAULT_WINDOW
        self.first_window_out = f.DEFAULT_WINDOW
        self.frame_out = f.DEFAULT_FRAME
        self._reader, self._open_stream, self._connections = reader, open_stream, connections
        self._outlet: Outlet | None = None
        self._loop = asyncio.get_running_loop()
        self._rest = bytearray(f.PREFACE)  # what must still come of the preface
        self._greeted = False
        self._needed = 0
        self._buffer = bytearray()
        self._block: tuple[int, int, bytearray] | None = None
        self._continuations = 0
        self._last = 0
        self._final: int | None = None
        """The last stream that is served, once the connection is to end."""
        self.intake = Intake(self.write, limits.held_limit, memory)
        self._resets = Resets()
        self._since = self._loop.time()
        """Since when it is idle, or was opened."""
        self._seen = (0, 0)

    # --- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say our settings at once: clients wait for them."""
        self._outlet = Outlet(cast("asyncio.Transport", transport), self._flush)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) else ""
        self._connections.add(self)
        self.write(
            f.settings(
                {
                    f.MAX_CONCURRENT_STREAMS: self.limits.max_streams,
                    f.INITIAL_WINDOW_SIZE: WINDOW,
                    f.MAX_FRAME_SIZE: MAX_FRAME,
                    f.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
                }
            )
            + f.window_update(0, CONNECTION_WINDOW - f.DEFAULT_WINDOW)
        )

    def connection_lost(self, _error: Exception | None) -> None:
        """Whatever was being done for this client is for nobody."""
        self._outlet = None
        self._connections.discard(self)
        for stream in list(self.streams.values()):
            stream.abandon()

    def pause_writing(self) -> None:
        """The client does not read."""
        if self._outlet is not None:
            self._outlet.pause()

    def resume_writing(self) -> None:
        """It does again."""
        if self._outlet is not None:
            self._outlet.resume()

    def write(self, data: bytes) -> None:
        """Send frames."""
        if self._outlet is not None:
            self._outlet.write(data)

    def trust(self) -> None:
        """A caller that is known has called: what its header blocks mean is kept."""
        self._reader.keeps = True

    @property
    def full(self) -> bool:
        """Whether what is to be sent must wait."""
        return self._outlet is None or self._outlet.full

    @property
    def open(self) -> bool:
        """Whether anything can still come or go."""
        return self._outlet is not None and self._outlet.open

    def data_received(self, data: bytes) -> None:
        """Read all frames that are complete."""
        try:
            if not self._greeted:
                data = self._greet(data)
            if self._buffer:
                self._buffer += data
                if len(self._buffer) < self._needed:
                    return
                data = bytes(self._buffer)
                self._buffer.clear()
            self._read(data)
        except ConnectionFault as fault:
            self.end(fault.code, str(fault))

    def _greet(self, data: bytes) -> bytes:
        expected = bytes(self._rest[: len(data)])
        if data[: len(expected)] != expected:
            raise ConnectionFault(f.PROTOCOL_ERROR, "this port speaks gRPC, which is HTTP/2")
        del self._rest[: len(expected)]
        self._greeted = not self._rest
        return data[len(expected) :]

    def _read(self, data: bytes) -> None:
        position, size = 0, len(data)
        unpack = f.head.unpack_from
        while size - position >= f.HEAD_BYTES and self.open:
            high, low, kind, flags, number = unpack(data, position)
            begin = position + f.HEAD_BYTES
            length = high << 8 | low
            if length > MAX_FRAME:
                raise ConnectionFault(f.FRAME_SIZE_ERROR, "a frame is larger than the settings allow")
            if size - begin < length:
                break
            position = begin + length
            number &= f.MAX_STREAM
            if self._block is not None and (kind != f.CONTINUATION or number != self._block[0]):
                raise ConnectionFault(f.PROTOCOL_ERROR, "a header block was not finished")
            payload = data[begin:position]
            if kind == f.DATA:
                self._on_data(number, flags, payload)
            elif kind == f.HEADERS:
                self._on_headers(number, flags, payload)
            else:
                self._on_other(kind, flags, number, payload)
        if position < size and self.open:
            self._buffer += data[position:]
            self._needed = f.HEAD_BYTES
            if len(self._buffer) >= f.HEAD_BYTES:
                high, low, *_ = unpack(self._buffer, 0)
                self._needed += high << 8 | low

    # --- frames

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise ConnectionFault(f.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & f.PADDED:
            payload = f.unpadded(payload, flags)
        if flags & f.WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(f.FRAME_SIZE_ERROR, "HEADERS of a broken length")
            payload = payload[5:]
        if flags & f.END_HEADERS:
            self._on_block(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))
            self._since = self._loop.time()
            self._continuations = 0

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(f.PROTOCOL_ERROR, "CONTINUATION of nothing")
        number, first_flags, block = self._block
        block += payload
        self._continuations += 1
        if len(block) > MAX_READ_BYTES or self._continuations > MAX_CONTINUATIONS:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "the headers are too large")
        if flags & f.END_HEADERS:
            self._block = None
            self._on_block(number, first_flags, bytes(block))

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        if len(block) > MAX_READ_BYTES:
            raise ConnectionFault(f.ENHANCE_YOUR_CALM, "the headers are too large")
        if len(block) > MAX_LIST_BYTES:
            self._resets.spend(LARGE_BLOCK)
        head = self._reader.read(block)
        known = self.streams.get(number)
        if known is not None:  # trailers
            if known.ended or not flags & f.END_STREAM:
                known.reset(f.PROTOCOL_ERROR)
            else:
                known.ended = True
                known.on_end()
            return
        if number <= self._last:
            return  # of a stream that was reset meanwhile
        self._last = number
        if self._final is not None and number > self._final:
            self.write(f.rst_stream(number, f.REFUSED_STREAM))
            return
        if len(self.streams) + self.orphans >= self.limits.max_streams:
            self._resets.spend()
            self.write(f.rst_stream(number, f.REFUSED_STREAM))
            return
        stream = self.streams[number] = self._open_stream(self, number, head)
        if flags & f.END_STREAM and not stream.finished:
            stream.ended = True
            stream.on_end()

    def _on_data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self.intake.received(size)
        stream = self.streams.get(number)
        if stream is None:
            if number == 0 or number > self._last:
                raise ConnectionFault(f.PROTOCOL_ERROR, "data of a stream that was not opened")
            return  # of a stream that was reset meanwhile
        if stream.ended:
            stream.reset(f.STREAM_CLOSED)
            return
        stream.window_in -= size
        if stream.window_in < 0:
            stream.reset(f.FLOW_CONTROL_ERROR)
            return
        if flags & f.PADDED:
            payload = f.unpadded(payload, flags)
        if flags & f.END_STREAM:
            stream.ended = True
        stream.on_data(payload)
        if stream.finished:
            return
        if flags & f.END_STREAM:
            stream.on_end()
        else:
            self.intake.extend(stream)

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == f.WINDOW_UPDATE:
            self._on_window_update(number, f.read_u32(payload) & f.MAX_WINDOW)
        elif kind == f.PING:
            self._on_ping(flags, payload)
        elif kind == f.SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == f.RST_STREAM:
            self._on_rst_stream(number, payload)
        elif kind == f.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == f.PUSH_PROMISE:
            raise ConnectionFault(f.PROTOCOL_ERROR, "a client promised a push")

    def _on_window_update(self, number: int, increment: int) -> None:
        if number == 0:
            if not increment:
                raise ConnectionFault(f.PROTOCOL_ERROR, "a window update of nothing")
            self.window_out += increment
            if self.window_out > f.MAX_WINDOW:
                raise ConnectionFault(f.FLOW_CONTROL_ERROR, "a window over 2**31")
            self._flush()
            return
        if number > self._last:
            raise ConnectionFault(f.PROTOCOL_ERROR, "a window of a stream that was not opened")
        stream = self.streams.get(number)
        if stream is None:
            return
        stream.window_out += increment
        if not increment or stream.window_out > f.MAX_WINDOW:
            stream.reset(f.FLOW_CONTROL_ERROR if increment else f.PROTOCOL_ERROR)
        elif stream in self.blocked:
            stream.flush()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or (flags & f.ACK and payload):
            raise ConnectionFault(f.PROTOCOL_ERROR, "SETTINGS that are none")
        if flags & f.ACK:
            return
        for name, value in f.read_settings(payload):
            if name == f.INITIAL_WINDOW_SIZE:
                if value > f.MAX_WINDOW:
                    raise ConnectionFault(f.FLOW_CONTROL_ERROR, "a window over 2**31")
                for stream in self.streams.values():
                    stream.window_out += value - self.first_window_out
                self.first_window_out = value
            elif name == f.MAX_FRAME_SIZE:
                if not f.DEFAULT_FRAME <= value < 2**24:
                    raise ConnectionFault(f.PROTOCOL_ERROR, "a frame size that cannot be")
                self.frame_out = min(value, MAX_FRAME)
            elif name == f.ENABLE_PUSH and value > 1:
                raise ConnectionFault(f.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        self.write(f.frame(f.SETTINGS, f.ACK, 0))
        self._flush()

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(f.FRAME_SIZE_ERROR, "PING of a broken length")
        if not flags & f.ACK:
            self.write(f.frame(f.PING, f.ACK, 0, payload))
        elif self._final == f.MAX_STREAM:  # the client knows that it is to go: what it sent before, it sent before this
            self._final = self._last
            self.write(f.goaway(self._last, f.NO_ERROR))
            self._end_if_done()

    def _on_rst_stream(self, number: int, payload: bytes) -> None:
        f.read_u32(payload)
        if number == 0 or number > self._last:
            raise ConnectionFault(f.PROTOCOL_ERROR, "a reset of a stream that was not opened")
        self._resets.spend()
        stream = self.streams.get(number)
        if stream is not None:
            stream.abandon()

    # --- sending

    def header_frames(self, number: int, block: bytes, *, end: bool) -> bytes:
        """HEADERS, and CONTINUATION where it does not fit."""
        size = len(block)
        flags = f.END_STREAM if end else 0
        if size <= self.frame_out:
            return f.head.pack(size >> 8, size & 0xFF, f.HEADERS, flags | f.END_HEADERS, number) + block
        parts = [block[at : at + self.frame_out] for at in range(0, size, self.frame_out)]
        made = [f.frame(f.HEADERS, flags, number, parts[0])]
        made += [f.frame(f.CONTINUATION, 0, number, part) for part in parts[1:-1]]
        return b"".join([*made, f.frame(f.CONTINUATION, f.END_HEADERS, number, parts[-1])])

    def _flush(self) -> None:
        for stream in list(self.blocked):
            if self.full:
                return
            stream.flush()

    def forget(self, stream: Stream) -> None:
        """``stream`` is over."""
        self.streams.pop(stream.number, None)
        self.blocked.pop(stream, None)
        stream.release()
        if self._final is not None:
            self._end_if_done()

    # --- the end

    def leave(self) -> None:
        """Ask the client to go elsewhere; what it has sent is served."""
        if self._final is None and self.open:
            self._final = f.MAX_STREAM
            self.write(f.goaway(f.MAX_STREAM, f.NO_ERROR) + f.frame(f.PING, 0, 0, b"farewell"))

    def end(self, code: int, reason: str) -> None:
        """GOAWAY, and close once it is sent; streams that are open are lost."""
        if self._outlet is not None:
            self._outlet.write(f.goaway(self._last, code, reason))
            self._outlet.close()
        for stream in list(self.streams.values()):
            stream.abandon()

    def abort(self) -> None:
        """Close at once."""
        if self._outlet is not None:
            self._outlet.abort()

    def _end_if_done(self) -> None:
        if not self.streams and self._final != f.MAX_STREAM and self._outlet is not None:
            self._outlet.close()

    def check(self, now: float, interval_s: float) -> None:
        """Called every ``interval_s``: end what is late."""
        self._resets.refill(interval_s)
        if not self._greeted or self._block is not None:
            if now - self._since > self.limits.header_timeout_s:
                self.abort()
            return
        seen = (self._last, len(self.streams))
        if self.streams or seen != self._seen:
            self._since, self._seen = now, seen
        elif now - self._since > self.limits.idle_s:
            self.end(f.NO_ERROR, "idle")
            return
        for stream in list(self.streams.values()):
            stream.check(now)
        late_s = self.limits.body_timeout_s
        if self._outlet is not None and self._outlet.is_stuck(now, waiting=bool(self.blocked), timeout_s=late_s):
            self.abort()  # close would wait for this client for ever
