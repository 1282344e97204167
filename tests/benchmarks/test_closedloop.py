"""A closed loop counts what arrives inside its window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop, one_by_one
from benchmarks.recording import Outcome
from benchmarks.workloads import WORKLOADS

DELAY_S = 0.2
USERS = 8


@asynccontextmanager
async def delaying(delay_s: float) -> AsyncIterator[str]:
    """A server that answers each request after ``delay_s``, and says how it spent them."""
    handlers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.rsplit(b"content-length: ", 1)[1].split(b"\r", 1)[0])
                body = (await reader.readexactly(size))[-256:]
                await asyncio.sleep(delay_s)
                lines = b"HTTP/1.1 200 OK\r\nServer-Timing: infer;dur=3.5, total;dur=4\r\ncontent-length: %d\r\n\r\n"
                writer.write(lines % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.wait_for(asyncio.gather(*handlers), 5)


async def test_throughput_holds_the_answers_to_what_was_asked_before_the_window() -> None:
    # All users answer together at 0.2, 0.4, ... s. The window from 0.3 to 1.3 s holds five answers of each; the first
    # were asked for before it. Those that began and ended inside are four of each.
    async with delaying(DELAY_S) as url, connect(url, None) as client:
        run = await ClosedLoop(client, WORKLOADS["identity"](1), USERS).run(1.0, 0.3)
    mean_s = float(run.recording.latencies_us().mean()) / 1e6
    assert run.throughput == pytest.approx(USERS / mean_s, rel=0.15)
    assert run.right > sum(done <= run.end_ns for done in run.recording.done)


async def test_the_first_requests_are_asked_one_by_one() -> None:
    async with delaying(0.0) as url, connect(url, None) as client:
        run = await one_by_one(client, WORKLOADS["identity"](1), 5)
    assert (len(run.recording), run.right, run.connections) == (5, 5, 1)
    assert run.recording.sent[0] >= run.start_ns
    assert all(done <= sent for done, sent in zip(run.recording.done, run.recording.sent[1:], strict=False))


async def test_a_sample_of_the_answers_says_where_the_time_went() -> None:
    async with delaying(0.0) as url, connect(url, None) as client:
        run = await ClosedLoop(client, WORKLOADS["identity"](1), 4).run(0.3)
    assert {timing for _, timing in run.recording.timings} == {b"infer;dur=3.5, total;dur=4"}
    assert 0 < len(run.recording.timings) < run.recording.count(Outcome.OK)
