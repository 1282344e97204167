"""The load client against real sockets: what a server can do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from benchmarks.client import judge
from benchmarks.http_client import Exchange, HttpPool
from benchmarks.judgement import EXPIRED, FAILED, WITHDRAWN
from benchmarks.recording import Outcome
from benchmarks.workloads import WORKLOADS, Payload

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PAYLOAD = Payload("/x", b"body", "text/plain", (("X-Extra", "1"),))


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await reader.readexactly(4)


async def test_what_is_on_the_wire_and_keep_alive() -> None:
    heads: list[bytes] = []
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            head, _body = await read_request(reader)
            heads.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n")

    async with serving(handler) as url, HttpPool(url, "secret") as pool:
        for _ in range(3):
            exchange = await pool.post(PAYLOAD)
            assert (exchange.status, exchange.body) == (200, b"yes")
    assert connections == 1
    assert heads[0].startswith(b"POST /prefix/x HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in heads[0]
    assert b"\r\nX-Extra: 1\r\n" in heads[0]


async def test_a_server_that_closes_each_connection_gets_new_ones() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()

    async with serving(handler) as url, HttpPool(url) as pool:
        assert [(await pool.post(PAYLOAD)).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"])
async def test_broken_answers_are_failures(answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)

    async with serving(handler) as url, HttpPool(url) as pool:
        assert (await pool.post(PAYLOAD)).status == FAILED


async def test_a_silent_server_is_a_timeout_of_at_least_the_timeout() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()  # until the client breaks off

    async with serving(handler) as url, HttpPool(url, timeout_s=0.3) as pool:
        exchange = await pool.post(PAYLOAD)
    assert exchange.status == EXPIRED
    assert exchange.done_ns - exchange.sent_ns >= 0.29e9


async def test_a_cancelled_request_breaks_its_connection_off() -> None:
    gone = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        with suppress(ConnectionResetError):
            await reader.read()
        gone.set()

    async with serving(handler) as url, HttpPool(url) as pool:
        await pool.warm(1)
        ended: list[Exchange] = []
        exchange = pool.submit(pool.encode(PAYLOAD), ended.append)
        await asyncio.sleep(0)
        pool.cancel(exchange)
        await asyncio.wait_for(gone.wait(), 5)
    assert [item.status for item in ended] == [WITHDRAWN]


async def test_requests_beyond_the_limit_wait_and_all_are_answered() -> None:
    busy = most = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal busy, most
        while True:
            try:
                await read_request(reader)
            except asyncio.IncompleteReadError:
                return
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.01)
            busy -= 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with serving(handler) as url, HttpPool(url, limit=3) as pool:
        exchanges = await asyncio.gather(*(pool.post(PAYLOAD) for _ in range(20)))
    assert {exchange.status for exchange in exchanges} == {200}
    assert most <= 3


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (429, Outcome.SHED), (503, Outcome.SHED), (500, Outcome.ERROR), (401, Outcome.ERROR), (FAILED, Outcome.ERROR),
        (EXPIRED, Outcome.TIMEOUT), (504, Outcome.TIMEOUT),
        (WITHDRAWN, Outcome.CANCELLED),
    ],
)  # fmt: skip
def test_how_an_end_counts(status: int, outcome: Outcome) -> None:
    workload = WORKLOADS["identity"](1)
    exchange = Exchange(b"", lambda _: None, 0)
    exchange.status = status
    assert judge(workload, workload.unique(1), exchange)[0] is outcome


def test_only_http_is_spoken() -> None:
    with pytest.raises(ValueError, match="http://"):
        HttpPool("https://example.org")
