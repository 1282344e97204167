"""The listener and grpcio's own clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.gateway.http2.served import MAX_MESSAGE, Served, eventually

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as running:
        yield running


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.address, options=OPTIONS) as opened:
        yield opened


def unary(channel: Any, name: str) -> Any:
    return channel.unary_unary(f"/t.T/{name}")


def test_an_answer_with_metadata(channel: grpc.Channel, served: Served) -> None:
    reply, call = unary(channel, "Echo").with_call(b"hello", metadata=(("x-say", "what"),), timeout=20)
    assert reply == b"hello"
    assert call.code() == grpc.StatusCode.OK
    assert ("x-said", "what") in [tuple(item) for item in call.trailing_metadata()]
    assert 19 < (served.timeouts[-1] or 0) <= 20.1


@pytest.mark.parametrize("size", [0, 1, 65_531, 65_535, 65_536, 1_000_000, 40 * 2**20])
def test_messages_of_any_size_both_ways(channel: grpc.Channel, size: int) -> None:
    message = os.urandom(size)
    assert unary(channel, "Echo")(message, timeout=30) == message


async def test_many_large_messages_at_once_through_the_windows(served: Served) -> None:
    """More than the connection's window, and each more than a stream's, in no order."""
    messages = [os.urandom(3_000_000 + number) for number in range(24)]  # three times as many as may be open
    async with grpc.aio.insecure_channel(served.address, options=OPTIONS) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert await asyncio.gather(*(echo(message, timeout=60) for message in messages)) == messages


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(channel: grpc.Channel, compression: grpc.Compression) -> None:
    message = b"tide" * 100_000
    assert unary(channel, "Echo")(message, compression=compression, timeout=20) == message


def test_a_message_that_is_too_large(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Echo")(b"\0" * (MAX_MESSAGE + 1), timeout=20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert unary(channel, "Echo")(b"next", timeout=20) == b"next"


def test_a_message_that_is_too_large_when_decompressed(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Echo")(b"\0" * (MAX_MESSAGE + 1), compression=grpc.Compression.Gzip, timeout=20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_messages_are_inflated_to_counts_as_held() -> None:
    with Served(max_held_bytes=2**20) as served, grpc.insecure_channel(served.address, options=OPTIONS) as channel:
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                unary(channel, "Echo")(b"\0" * 2**21, compression=grpc.Compression.Gzip, timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        half = b"\0" * 2**19
        for _ in range(4):  # given back each time
            assert unary(channel, "Echo")(half, compression=grpc.Compression.Gzip, timeout=20) == half


@pytest.mark.parametrize("text", ["plain", "per%cent", "zwei\nZeilen", "für 模型"])
def test_a_status_with_its_message(channel: grpc.Channel, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Fail")(text.encode(), timeout=20)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == text
    assert ("x-more", "1") in [tuple(item) for item in caught.value.trailing_metadata()]


def test_what_a_handler_does_not_catch(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Break")(b"", timeout=20)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")


def test_a_method_that_is_not_there(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Nothing")(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metadata_that_is_too_large(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Echo")(b"", metadata=(("x-big", "a" * 40_000),), timeout=20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_cancels_is_not_worked_for(channel: grpc.Channel, served: Served) -> None:
    began, cancelled = served.began, served.cancelled
    future = unary(channel, "Wait").future(b"", timeout=60)
    eventually(lambda: served.began > began, "the handler began")
    future.cancel()
    eventually(lambda: served.cancelled > cancelled, "the handler was cancelled")
    future = unary(channel, "Wait").future(b"", timeout=60)
    eventually(lambda: served.began > began + 1, "the handler began")
    channel.close()
    eventually(lambda: served.cancelled > cancelled + 1, "the handler was cancelled with its connection")


def test_a_stream_both_ways(channel: grpc.Channel) -> None:
    double = channel.stream_stream("/t.T/Double")
    messages = [os.urandom(size) for size in (0, 10, 70_000, 600_000)]
    got = list(double(iter(messages), timeout=20))
    assert got == [message for message in messages for _ in range(2)]
    call = double(iter([b"a", b"stop", b"b"]), timeout=20)
    assert [next(call), next(call)] == [b"a", b"a"]
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() == grpc.StatusCode.ABORTED


def test_more_calls_than_streams_wait_their_turn(channel: grpc.Channel) -> None:
    futures = [unary(channel, "Echo").future(b"%d" % number, timeout=30) for number in range(200)]
    assert [future.result() for future in futures] == [b"%d" % number for number in range(200)]


def test_a_server_that_stops_lets_calls_end_and_tells_clients_to_go() -> None:
    with Served() as served, grpc.insecure_channel(served.address, options=OPTIONS) as channel:
        served.grace_s = 5.0
        reply = unary(channel, "Wait").future(b"", timeout=60)
        eventually(lambda: served.began == 1, "the handler began")
        stream = channel.stream_stream("/t.T/Double")(iter([b"a"]), timeout=20)
        assert list(stream) == [b"a", b"a"]
        served.grace_s = 0.5
        served.stop()
        with pytest.raises(grpc.RpcError) as caught:  # past its grace
            reply.result()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert served.cancelled == 1
