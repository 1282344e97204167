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


@dataclass(slots=True, frozen=True)
class ClosedRun:
    """A closed loop's samples between ``start_ns`` and ``end_ns`` (warm-up excluded)."""

    concurrency: int
    recording: Recording
    start_ns: int
    end_ns: int
    cpu_s: float
    """Processor time of the generator itself."""

    @property
    def duration_s(self) -> float:
        """Length of the measured window."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def throughput(self) -> float:
        """Right answers a second that arrived inside the window."""
        inside = sum(
            1
            for done, outcome in zip(self.recording.done, self.recording.outcome, strict=True)
            if outcome == Outcome.OK and self.start_ns <= done <= self.end_ns
        )
        return inside / self.duration_s


def prepare(client: Client, workload: Workload, count: int, start: int = 0) -> list[Prepared]:
    """``count`` requests ready for the wire, so that making them costs nothing during the run."""
    payloads = [workload.request(index) for index in range(start, start + count)]
    return [(payload, client.encode(payload)) for payload in payloads]


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
        self._idle = asyncio.Event()

    async def run(self, duration_s: float, warmup_s: float = 0.0) -> ClosedRun:
        """Raises ``OSError`` if the server cannot be reached."""
        await self._client.warm(self._concurrency)
        begin = time.monotonic_ns()
        start = begin + int(warmup_s * 1e9)
        self._stop_ns = start + int(duration_s * 1e9)
        sent_before, cpu = self._client.bytes_out, time.process_time()
        for _ in range(self._concurrency):
            self._next()
        await self._idle.wait()
        recording = self._recording.since(start)
        recording.bytes_out = self._client.bytes_out - sent_before
        return ClosedRun(self._concurrency, recording, start, self._stop_ns, time.process_time() - cpu)

    def _next(self) -> None:
        payload, request = self._take()

        def done(exchange: Exchange) -> None:
            self.answered += 200 <= exchange.status < 300
            outcome, fault = judge(self._workload, payload, exchange)
            self._recording.add(
                exchange.sent_ns,
                exchange.sent_ns,
                exchange.done_ns,
                outcome,
                max(0, exchange.status),
                len(exchange.body),
            )
            if fault is not None:
                self._recording.faults[fault] += 1
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
