"""Who may call is asked when a call's headers are there: of a stranger's message nothing is kept, and none inflated."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator

import grpc
import pytest

from gateway.http2.intake import WINDOW
from tests.gateway.http2.served import END_HEADERS, END_STREAM, Peer, Served, call, eventually, framed
from tests.live.hostile import h2

STRANGER, GUEST, LATE = (("x-caller", name) for name in ("stranger", "guest", "late"))


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as running:
        yield running


def opened(stream: int, *more: tuple[str, str], path: str = "/t.T/Echo") -> bytes:
    """The headers of a call whose message is still to come."""
    return h2.frame(h2.HEADERS, stream, h2.headers(path, *more), END_HEADERS)


def data(stream: int, message: bytes, flags: int = 0) -> bytes:
    """Frames of 16 KiB; the last one with ``flags``."""
    parts = [message[at : at + 16384] for at in range(0, len(message), 16384)]
    return b"".join(h2.frame(h2.DATA, stream, part, flags * (part is parts[-1])) for part in parts)


def status(head: bytes) -> int:
    """The gRPC status in a header block."""
    found = re.search(rb"grpc-status.(\d+)", head, re.DOTALL)
    assert found, head
    return int(found[1])


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/Double"])
def test_a_stranger_is_refused_before_anything_is_sent(served: Served, path: str) -> None:
    with Peer(served.address) as peer:
        peer.send(opened(1, STRANGER, path=path))
        head, body = peer.answer(1)
        assert status(head) == grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert not body
        peer.send(data(1, framed(bytes(40_000)), END_STREAM) + call(3))  # what was under way is dropped
        assert peer.answer(3)[1] == framed(b"hello")


def test_nothing_is_held_of_strangers_messages(served: Served) -> None:
    memory = served.server._memory
    with Peer(served.address) as peer:
        for stream in range(1, 16, 2):
            peer.send(opened(stream, STRANGER) + data(stream, framed(bytes(2**20))[: WINDOW // 2]))
        for stream in range(1, 16, 2):
            assert status(peer.answer(stream)[0]) == grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert memory.used == 0
        (connection,) = served.server.connections
        assert not connection.streams
        peer.send(call(17))
        assert peer.answer(17)[1] == framed(b"hello")


def test_a_strangers_compressed_message_is_not_inflated(served: Served) -> None:
    broken = gzip.compress(bytes(1000))[:-4] + b"oops"  # inflating it would be another error
    with Peer(served.address) as peer:
        more = (STRANGER, ("grpc-encoding", "gzip"))
        peer.send(opened(1, *more) + data(1, framed(broken, 1), END_STREAM))
        assert status(peer.answer(1)[0]) == grpc.StatusCode.UNAUTHENTICATED.value[0]
        peer.send(opened(3, more[1]) + data(3, framed(broken, 1), END_STREAM))
        assert status(peer.answer(3)[0]) == grpc.StatusCode.INTERNAL.value[0]


def test_while_it_is_not_known_who_calls_one_window_is_all(served: Served) -> None:
    """The window opens when the caller is found, and the call goes on."""
    message = framed(bytes(range(256)) * 4096)
    memory = served.server._memory
    with Peer(served.address) as peer:
        peer.send(opened(1, LATE) + data(1, message[:WINDOW]))
        eventually(lambda: memory.used == WINDOW, "the first window")
        peer.send(h2.frame(h2.PING, 0, b"question"))
        before = peer.until(lambda frame: frame[0] == h2.PING and bool(frame[1] & h2.ACK))
        assert not [frame for frame in before if frame[0] == 8 and frame[2] == 1]  # WINDOW_UPDATE
        served.find()
        sent = WINDOW
        while sent < len(message):
            update = peer.until(lambda frame: frame[0] == 8 and frame[2] == 1)[-1]
            more = message[sent : sent + int.from_bytes(update[3], "big")]
            sent += len(more)
            peer.send(data(1, more, END_STREAM if sent == len(message) else 0))
        peer.send(h2.frame(8, 0, (2**20).to_bytes(4, "big")) + h2.frame(8, 1, (2**20).to_bytes(4, "big")))
        assert peer.answer(1)[1] == message
        assert memory.used == 0


def test_a_caller_that_goes_before_it_is_known_leaves_nothing(served: Served) -> None:
    with Peer(served.address) as peer:
        peer.send(opened(1, LATE) + data(1, framed(bytes(100_000))[:50_000]))
        eventually(lambda: served.server._memory.used == 50_000, "a part of the message")
        peer.send(h2.frame(h2.RST_STREAM, 1, h2.CANCEL.to_bytes(4, "big")))
        (connection,) = served.server.connections
        eventually(lambda: not connection.streams and not connection.orphans, "the call's end")
        assert served.server._memory.used == 0


@pytest.mark.parametrize("caller", ["guest", "stranger", "somebody"])
def test_what_header_blocks_mean_is_kept_for_known_callers_only(served: Served, caller: str) -> None:
    with Peer(served.address) as peer:
        for index in range(20):
            path, more = "/t.T/Echo", (("x-caller", caller), ("x-number", str(index)))
            peer.send(call(2 * index + 1, b"hello", path, *more))
            peer.answer(2 * index + 1)
        (connection,) = served.server.connections
        assert len(connection._reader._kept) == (19 if caller == "somebody" else 0)


def test_with_the_message_in_the_same_packet_nothing_waits(served: Served) -> None:
    with Peer(served.address) as peer:
        peer.send(b"".join(call(stream, b"m%d" % stream, "/t.T/Echo", GUEST) for stream in (1, 3, 5)))
        for stream in (1, 3, 5):
            assert peer.answer(stream)[1] == framed(b"m%d" % stream)
