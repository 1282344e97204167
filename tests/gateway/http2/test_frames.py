"""Frames that no gRPC library sends, and some that they do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.gateway.http2.served import (
    END_HEADERS,
    END_STREAM,
    LIMITS,
    PADDED,
    PRIORITY,
    Peer,
    Served,
    call,
    eventually,
    framed,
)
from tests.live.hostile import h2
from tests.live.hostile.h2 import DATA, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame

WINDOW_UPDATE, PUSH_PROMISE, CONTINUATION = 8, 5, 9
HELLO = framed(b"hello")
ECHO = h2.headers("/t.T/Echo")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as running:
        yield running


@pytest.fixture
def peer(served: Served) -> Iterator[Peer]:
    with Peer(served.address) as connected:
        yield connected


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def test_a_call(peer: Peer) -> None:
    peer.send(call(1, b"hello", "/t.T/Echo", ("x-say", "Grüße")))
    head, data = peer.answer()
    assert data == HELLO
    assert b"grpc-status\x010" in head


@pytest.mark.parametrize(
    "sent",
    {
        "padded": frame(HEADERS, 1, b"\x05" + ECHO + b"\0" * 5, END_HEADERS | PADDED)
        + frame(DATA, 1, b"\x03" + HELLO + b"\0" * 3, END_STREAM | PADDED),
        "with a priority": frame(HEADERS, 1, b"\0\0\0\0\x10" + ECHO, END_HEADERS | PRIORITY)
        + frame(2, 1, b"\0\0\0\0\x10")
        + frame(DATA, 1, HELLO, END_STREAM),
        "a header block in three": frame(HEADERS, 1, ECHO[:20])
        + frame(CONTINUATION, 1, ECHO[20:30])
        + frame(CONTINUATION, 1, ECHO[30:], END_HEADERS)
        + frame(DATA, 1, HELLO, END_STREAM),
        "an empty frame at the end": frame(HEADERS, 1, ECHO, END_HEADERS)
        + frame(DATA, 1, HELLO)
        + frame(DATA, 1, b"", END_STREAM),
        "byte by byte": frame(HEADERS, 1, ECHO, END_HEADERS)
        + b"".join(frame(DATA, 1, HELLO[at : at + 1]) for at in range(len(HELLO)))
        + frame(DATA, 1, b"", END_STREAM),
        "trailers": frame(HEADERS, 1, ECHO, END_HEADERS)
        + frame(DATA, 1, HELLO)
        + frame(HEADERS, 1, b"\0\x01x\x01y", END_HEADERS | END_STREAM),
        "an unknown frame before": frame(200, 77, b"what") + call(1),
        "compressed": frame(HEADERS, 1, h2.headers("/t.T/Echo", ("grpc-encoding", "deflate")), END_HEADERS)
        + frame(DATA, 1, framed(zlib.compress(b"hello"), 1), END_STREAM),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_shapes_of_a_call(served: Served, sent: tuple[str, bytes], piece: int) -> None:
    """However a client cuts it, and however TCP does."""
    with Peer(served.address, greet=False) as peer:
        whole = h2.PREFACE + frame(SETTINGS, 0) + sent[1]
        for at in range(0, len(whole), piece):
            peer.send(whole[at : at + piece])
        assert peer.answer()[1] == HELLO


BROKEN = {
    "no preface": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, False),
    "a frame that is too large": (frame(DATA, 1, b"\0" * 70_000), 6, True),
    "data on no stream": (frame(DATA, 0, b"a"), 1, True),
    "data on a stream that is not open": (frame(DATA, 5, b"a"), 1, True),
    "a stream of even number": (frame(HEADERS, 2, ECHO, END_HEADERS), 1, True),
    "headers on no stream": (frame(HEADERS, 0, ECHO, END_HEADERS), 1, True),
    "padding longer than its frame": (frame(HEADERS, 1, b"\xff" + ECHO, END_HEADERS | PADDED), 1, True),
    "a priority that is cut": (frame(HEADERS, 1, b"\0", END_HEADERS | PRIORITY), 6, True),
    "a header block that is not finished": (frame(HEADERS, 1, ECHO) + frame(6, 0, b"12345678"), 1, True),
    "a continuation of nothing": (frame(CONTINUATION, 1, ECHO, END_HEADERS), 1, True),
    "a continuation of another": (frame(HEADERS, 1, ECHO) + frame(CONTINUATION, 3, b"", END_HEADERS), 1, True),
    "many continuations": (frame(HEADERS, 1, ECHO) + frame(CONTINUATION, 1, b"") * 30, 11, True),
    "large continuations": (frame(HEADERS, 1, ECHO) + frame(CONTINUATION, 1, b"\0" * 16_000) * 6, 11, True),
    "a header list that grows when read": (
        frame(HEADERS, 1, b"\x40\x01x\x7f\x81\x1e" + b"y" * 4000 + b"\xbe" * 500, END_HEADERS), 11, True,
    ),
    "a broken header block": (frame(HEADERS, 1, b"\xff\xff\xff\xff\xff", END_HEADERS), 9, True),
    "a header block that is cut": (frame(HEADERS, 1, b"\x00\x05a", END_HEADERS), 9, True),
    "a window of nothing": (frame(WINDOW_UPDATE, 0, u32(0)), 1, True),
    "a window that is too large": (frame(WINDOW_UPDATE, 0, u32(2**31 - 1)) * 2, 3, True),
    "a window of a broken length": (frame(WINDOW_UPDATE, 0, b"abc"), 6, True),
    "a window of a stream that is not open": (frame(WINDOW_UPDATE, 9, u32(1)), 1, True),
    "a ping of a broken length": (frame(6, 0, b"1"), 6, True),
    "settings of a broken length": (frame(SETTINGS, 0, b"12345"), 6, True),
    "settings on a stream": (frame(SETTINGS, 1), 1, True),
    "a first window that is too large": (frame(SETTINGS, 0, struct.pack(">HI", 4, 2**31)), 3, True),
    "a frame size that cannot be": (frame(SETTINGS, 0, struct.pack(">HI", 5, 1000)), 1, True),
    "a push switch that is neither": (frame(SETTINGS, 0, struct.pack(">HI", 2, 2)), 1, True),
    "a pushed promise": (frame(PUSH_PROMISE, 1, u32(2)), 1, True),
    "a reset of a stream that is not open": (frame(RST_STREAM, 9, u32(8)), 1, True),
    "a flood of resets": (
        b"".join(call(number) + frame(RST_STREAM, number, u32(8)) for number in range(1, 5000, 2)), 11, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "code", "greet"), BROKEN.values(), ids=BROKEN.keys())
def test_who_breaks_the_protocol_is_told_and_disconnected(served: Served, sent: bytes, code: int, greet: bool) -> None:
    with Peer(served.address, greet=greet) as peer:
        try:
            peer.send(sent)
        except OSError:
            return  # gone already
        assert peer.goaway() in {code, None} and peer.closed  # noqa: PT018 - None: what it still sent reset it
    with Peer(served.address) as other:
        other.send(call(1))
        assert other.answer()[1] == HELLO
    eventually(lambda: not served.server.connections, "no connection is left")


RESET = {
    "a window that is too large": (
        frame(HEADERS, 1, ECHO, END_HEADERS) + frame(WINDOW_UPDATE, 1, u32(2**31 - 1)) * 2, 3,
    ),
    "a window of nothing": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(WINDOW_UPDATE, 1, u32(0)), 1),
    "more than the window": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, b"\0" * 60_000) * 5, 3),
    "trailers that end nothing": (frame(HEADERS, 1, ECHO, END_HEADERS) * 2, 1),
    "a name in capitals": (frame(HEADERS, 1, ECHO + b"\0\x01X\x01y", END_HEADERS), 1),
    "a pseudo-header that is none": (frame(HEADERS, 1, ECHO + b"\0\x02:x\x01y", END_HEADERS), 1),
    "a line break in a value": (frame(HEADERS, 1, ECHO + b"\0\x01x\x02\r\n", END_HEADERS), 1),
    "no path": (frame(HEADERS, 1, b"\x83\x86", END_HEADERS), 1),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "code"), RESET.values(), ids=RESET.keys())
def test_who_breaks_a_stream_loses_that_stream(peer: Peer, sent: bytes, code: int) -> None:
    peer.send(sent)
    found = peer.until(lambda item: item[0] in (RST_STREAM, GOAWAY) or (item[0] == HEADERS))
    if found[-1][0] == HEADERS:  # the window was overrun by what is no message, and that was answered first
        assert b"grpc-status" in found[-1][3]
    else:
        assert found[-1][0] == RST_STREAM
        assert found[-1][3] == u32(code)
    peer.send(call(3))
    assert peer.answer(3)[1] == HELLO


STATUS = {
    "no message": (frame(HEADERS, 1, ECHO, END_HEADERS | END_STREAM), "13"),
    "two messages": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, HELLO * 2, END_STREAM), "13"),
    "two messages in two frames": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, HELLO) * 2, "13"),
    "half a message": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, HELLO[:-1], END_STREAM), "13"),
    "a message of 4 GiB": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, b"\0\xff\xff\xff\xff"), "8"),
    "compressed without saying how": (
        frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, framed(b"hello", 1), END_STREAM), "13",
    ),
    "compressed in a way nobody knows": (
        frame(HEADERS, 1, h2.headers("/t.T/Echo", ("grpc-encoding", "br")), END_HEADERS)
        + frame(DATA, 1, framed(b"hello", 1), END_STREAM), "12",
    ),
    "compressed and broken": (
        frame(HEADERS, 1, h2.headers("/t.T/Echo", ("grpc-encoding", "gzip")), END_HEADERS)
        + frame(DATA, 1, framed(b"hello", 1), END_STREAM), "13",
    ),
    "compressed and cut": (
        frame(HEADERS, 1, h2.headers("/t.T/Echo", ("grpc-encoding", "deflate")), END_HEADERS)
        + frame(DATA, 1, framed(zlib.compress(b"hello")[:-5], 1), END_STREAM), "13",
    ),
    "a message that never ends": (frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, HELLO[:7]), "4"),
    "a message that never begins": (frame(HEADERS, 1, ECHO, END_HEADERS), "4"),
    "a stream past its deadline": (
        frame(HEADERS, 1, h2.headers("/t.T/Double", ("grpc-timeout", "200m")), END_HEADERS), "4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), STATUS.values(), ids=STATUS.keys())
def test_calls_that_are_none(peer: Peer, sent: bytes, status: str) -> None:
    peer.send(sent)
    head, data = peer.answer()
    assert b"grpc-status" + bytes([len(status)]) + status.encode() in head
    assert not data
    peer.send(call(3))
    assert peer.answer(3)[1] == HELLO


@pytest.mark.parametrize(
    ("name", "value", "status"), [("content-type", "text/html", b"415"), (":method", "GET", b"405")]
)
def test_requests_that_are_not_grpc(peer: Peer, name: str, value: str, status: bytes) -> None:
    block = ECHO.replace(b"application/grpc", b"application/json") if name == "content-type" else ECHO
    block = block.replace(b"\x04POST", b"\x03GET") if name == ":method" else block
    peer.send(frame(HEADERS, 1, block, END_HEADERS | END_STREAM))
    assert status in peer.answer()[0]


def test_streams_over_the_limit_are_refused_and_the_others_served(peer: Peer) -> None:
    for number in range(1, 2 * LIMITS.max_streams, 2):
        peer.send(frame(HEADERS, number, ECHO, END_HEADERS))
    over = 2 * LIMITS.max_streams + 1
    peer.send(frame(HEADERS, over, ECHO, END_HEADERS))
    found = peer.until(lambda item: item[0] == RST_STREAM)
    assert found[-1][2:] == (over, u32(7))
    peer.send(frame(DATA, 3, HELLO, END_STREAM))
    assert peer.answer(3)[1] == HELLO


def test_a_stream_that_was_cancelled_counts_until_its_work_is_over(peer: Peer, served: Served) -> None:
    before = served.cancelled
    for number in range(1, 201, 2):
        peer.send(call(number, b"", "/t.T/Wait") + frame(RST_STREAM, number, u32(8)))
    peer.send(frame(6, 0, b"12345678"))
    peer.until(lambda item: item[0] == 6)
    (connection,) = served.server.connections
    eventually(lambda: connection.orphans == 0, "all work is over")
    assert served.cancelled - before <= 100


def test_header_blocks_that_repeat_and_a_table_that_changes(peer: Peer) -> None:
    """What was made of a block must not outlive what the block meant."""
    names = ECHO + b"\x40\x05x-say\x03one"  # remembered: entry 62
    body = frame(DATA, 0, b"")[:0]
    again = ECHO + b"\xbe"  # entry 62
    said = []
    for number, block in enumerate([names, again, again, ECHO + b"\x40\x05x-say\x03two", again, again]):
        stream = 2 * number + 1
        peer.send(frame(HEADERS, stream, block, END_HEADERS) + frame(DATA, stream, HELLO, END_STREAM) + body)
        said.append(peer.answer(stream)[0])
    assert [b"one" in head for head in said] == [True, True, True, False, False, False]
    assert [b"two" in head for head in said] == [False, False, False, True, True, True]


def test_a_table_of_one_entry_that_is_replaced_twice_in_one_block(peer: Peer) -> None:
    """The new entry may lie where the old one lay in memory."""
    peer.send(frame(HEADERS, 1, b"\x3f\x09" + ECHO + b"\x40\x05x-say\x03one", END_HEADERS))  # 40 bytes: one entry
    peer.send(frame(DATA, 1, HELLO, END_STREAM))
    assert b"one" in peer.answer(1)[0]
    for number, word in enumerate([b"two", b"six", b"ten"]):
        first, second = 4 * number + 3, 4 * number + 5
        peer.send(
            frame(HEADERS, first, ECHO + b"\x40\x05x-say\x03abc" + b"\x40\x05x-say\x03" + word, END_HEADERS)
            + frame(DATA, first, HELLO, END_STREAM)
        )
        peer.answer(first)
        peer.send(frame(HEADERS, second, ECHO + b"\xbe", END_HEADERS) + frame(DATA, second, HELLO, END_STREAM))
        assert word in peer.answer(second)[0]


def test_an_answer_waits_for_the_clients_windows(served: Served) -> None:
    with Peer(served.address, greet=False) as peer:
        peer.send(h2.PREFACE + frame(SETTINGS, 0, struct.pack(">HI", 4, 0)))  # a first window of nothing
        peer.send(call(1, b"a" * 100))
        peer.until(lambda item: item[0] == HEADERS)
        peer.send(frame(6, 0, b"12345678"))
        assert all(item[0] != DATA for item in peer.until(lambda item: item[0] == 6))
        peer.send(frame(WINDOW_UPDATE, 1, u32(10)))
        assert len(peer.until(lambda item: item[0] == DATA)[-1][3]) == 10
        peer.send(frame(SETTINGS, 0, struct.pack(">HI", 4, 50)))  # for streams that are open, too
        assert len(peer.until(lambda item: item[0] == DATA)[-1][3]) == 50
        peer.send(frame(SETTINGS, 0, struct.pack(">HI", 4, 20)))  # 30 less than nothing now
        peer.send(frame(WINDOW_UPDATE, 1, u32(60)))
        assert len(peer.until(lambda item: item[0] == DATA)[-1][3]) == 30
        peer.send(frame(WINDOW_UPDATE, 1, u32(1000)))
        assert b"grpc-status\x010" in peer.until(lambda item: item[0] == HEADERS)[-1][3]


def test_a_client_that_reads_nothing_is_not_read_either_and_ends() -> None:
    """It cannot make the server hold more than the answers of the streams that it may open."""
    with Served(replace(LIMITS, max_streams=100)) as served, Peer(served.address) as peer:
        peer.send(frame(WINDOW_UPDATE, 0, u32(2**30)) + frame(SETTINGS, 0, struct.pack(">HI", 4, 2**30)))
        peer.socket.settimeout(0.2)
        message = b"x" * 60_000
        sent = 0
        for number in range(1, 40_001, 2):
            try:
                peer.send(call(number, message))
            except OSError:  # it does not take any more, or has closed
                break
            sent += 1
        assert sent < 20_000
        eventually(lambda: not served.server.connections, "the server gave it up")


def test_connections_that_are_idle_or_never_begin_end() -> None:
    with (
        Served(replace(LIMITS, idle_s=0.3)) as served,
        Peer(served.address, greet=False) as silent,
        Peer(served.address) as idle,
    ):
        assert silent.goaway() is None
        assert silent.closed
        assert idle.goaway() == 0
        assert idle.closed


def test_one_connection_too_many_is_closed() -> None:
    with Served(max_connections=1) as served, Peer(served.address) as first:
        first.send(call(1))
        assert first.answer()[1] == HELLO
        with Peer(served.address) as second:
            assert second.goaway() is None
            assert second.closed
        first.send(call(3))
        assert first.answer(3)[1] == HELLO


def test_what_all_connections_hold_is_bounded() -> None:
    with Served(max_held_bytes=200_000) as served, Peer(served.address) as one, Peer(served.address) as two:
        part = b"\0" + u32(10**6) + b"x" * 16_000
        for peer in (one, two):
            peer.send(frame(HEADERS, 1, ECHO, END_HEADERS) + frame(DATA, 1, part))
        for _ in range(24):
            one.send(frame(DATA, 1, b"x" * 16_000))
        assert b"grpc-status\x0214" in one.answer()[0]
        one.send(call(3))
        assert one.answer(3)[1] == HELLO


def test_who_is_told_to_go_is_served_what_it_had_sent() -> None:
    with Served() as served, Peer(served.address) as peer:
        served.grace_s = 10.0
        peer.send(frame(HEADERS, 1, ECHO, END_HEADERS))
        peer.send(frame(6, 0, b"12345678"))
        peer.until(lambda item: item[0] == 6)
        served.stop()
        farewell = peer.until(lambda item: item[0] == 6)
        assert [item[3][:4] for item in farewell if item[0] == GOAWAY] == [u32(2**31 - 1)]
        peer.send(frame(HEADERS, 3, ECHO, END_HEADERS) + frame(6, 0, farewell[-1][3], 1))  # crossed the farewell
        final = peer.until(lambda item: item[0] == GOAWAY)
        assert final[-1][3] == u32(3) + u32(0)
        peer.send(frame(HEADERS, 5, ECHO, END_HEADERS))
        assert peer.until(lambda item: item[0] == RST_STREAM)[-1][2:] == (5, u32(7))
        peer.send(frame(DATA, 1, HELLO, END_STREAM))
        assert peer.answer(1)[1] == HELLO
        peer.send(frame(DATA, 3, HELLO, END_STREAM))
        assert peer.answer(3)[1] == HELLO
        assert peer.goaway() is None
        assert peer.closed
