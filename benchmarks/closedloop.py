"""Closed loops: so many users, each sending its next request when the last one is answered.

A closed loop finds throughput and shows concurrency; it cannot show what a queue does to people who
do not wait for each other. That is :mod:`benchmarks.openloop`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import Client, judge
from benchmarks.http_client import Exchange
from benchmarks.recording import Outcome, Recording
from benchmarks.workloads import Payload, Workload

Prepared = tuple[Payload, bytes]
TIMING = b"server-timing"


@dataclass(slots=True, frozen=True)
class ClosedRun:
    """A closed loop between ``start_ns`` and ``end_ns`` (warm-up excluded); samples are of requests begun there."""

    concurrency: int
    recording: Recording
    start_ns: int
    end_ns: int
    cpu_s: float
    """Processor time of the generator itself in the window."""
    right: int
    """Right answers that came inside the window, whenever they were asked for."""
    connections: int = 0

    @property
    def duration_s(self) -> float:
        """Length of the measured window."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def throughput(self) -> float:
        """Right answers a second that arrived inside the window."""
        return self.right / self.duration_s


def prepare(client: Client, workload: Workload, count: int, start: int = 0) -> list[Prepared]:
    """``count`` requests ready for the wire, so that making them costs nothing during the run."""
    payloads = [workload.request(index) for index in range(start, start + count)]
    return [(payload, client.encode(payload)) for payload in payloads]


async def one_by_one(client: Client, workload: Workload, count: int) -> ClosedRun:
    """The first ``count`` requests of one user, without warm-up: the first one opens the connection."""
    recording = Recording()
    begin, cpu = time.monotonic_ns(), time.process_time()
    for index in range(count):
        payload = workload.request(index)
        exchange = await client.post(payload)
        outcome, fault = judge(workload, payload, exchange)
        recording.add(
            exchange.sent_ns, exchange.sent_ns, exchange.done_ns, outcome, max(0, exchange.status),
            len(exchange.body), bytes_out=len(exchange.request), fault=fault, timing=exchange.headers.get(TIMING),
        )  # fmt: skip
    end = time.monotonic_ns()
    return ClosedRun(
        1, recording, begin, end, time.process_time() - cpu, recording.count(Outcome.OK), client.most_connections
    )


class ClosedLoop:
    """``concurrency`` users over one client, for ``duration_s`` seconds after ``warmup_s``.

    ``ring`` are prepared requests taken in turn; without it each request is made when it is due.
    """

    def __init__(
        self, client: Client, workload: Workload, concurrency: int, *, ring: Sequence[Prepared] = (), start: int = 0
    ) -> None:
        self._client = client
        self._workload = workload
        self._concurrency = concurrency
        self._ring = ring
        self._index = start
        self._recording = Recording()
        self.answered = 0
        """2xx answers of the whole run, warm-up included."""
        self._outstanding = 0
        self._stop_ns = 0
        self._cpu_s = 0.0
        self._idle = asyncio.Event()

    async def run(self, duration_s: float, warmup_s: float = 0.0) -> ClosedRun:
        """Raises ``OSError`` if the server cannot be reached."""
        await self._client.warm(self._concurrency)
        begin = time.monotonic_ns()
        start = begin + int(warmup_s * 1e9)
        self._stop_ns = start + int(duration_s * 1e9)
        self._cpu_s = time.process_time()
        warm = asyncio.get_running_loop().call_later(warmup_s, self._warm)
        for _ in range(self._concurrency):
            self._next()
        await self._idle.wait()
        warm.cancel()
        return ClosedRun(
            self._concurrency, self._recording.since(start), start, self._stop_ns, time.process_time() - self._cpu_s,
            self._recording.ended(Outcome.OK, start, self._stop_ns), self._client.most_connections,
        )  # fmt: skip

    def _warm(self) -> None:
        """The measured window begins: so does its processor time."""
        self._cpu_s = time.process_time()

    def _next(self) -> None:
        payload, request = self._take()

        def done(exchange: Exchange) -> None:
            self.answered += 200 <= exchange.status < 300
            outcome, fault = judge(self._workload, payload, exchange)
            self._recording.add(
                exchange.sent_ns, exchange.sent_ns, exchange.done_ns, outcome, max(0, exchange.status),
                len(exchange.body), bytes_out=len(request), fault=fault, timing=exchange.headers.get(TIMING),
            )  # fmt: skip
            self._outstanding -= 1
            if exchange.done_ns < self._stop_ns:
                if outcome in (Outcome.OK, Outcome.WRONG):
                    self._next()
                else:  # a user who was refused does not hammer
                    self._outstanding += 1
                    asyncio.get_running_loop().call_later(0.02, self._again)
            elif self._outstanding == 0:
                self._idle.set()

        self._outstanding += 1
        self._client.submit(request, done)

    def _again(self) -> None:
        self._outstanding -= 1
        if time.monotonic_ns() < self._stop_ns:
            self._next()
        elif self._outstanding == 0:
            self._idle.set()

    def _take(self) -> Prepared:
        index = self._index
        self._index += 1
        if self._ring:
            return self._ring[index % len(self._ring)]
        payload = self._workload.request(index)
        return payload, self._client.encode(payload)
