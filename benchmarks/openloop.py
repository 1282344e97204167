"""Open loops: requests leave when the schedule says so, whether or not earlier ones were answered.

Latency counts from the intended time. A generator that pauses because the server does ("coordinated
omission") would report the server's pauses as if nobody had waited for them; this one reports what
people who arrive independently of each other get to see.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.client import Client, judge
from benchmarks.closedloop import TIMING, Prepared
from benchmarks.http_client import Exchange
from benchmarks.pacing import Schedule, due
from benchmarks.recording import Outcome, Recording, histogram_of
from benchmarks.timer import PreciseTimer
from benchmarks.workloads import Workload

Verdict = Literal["VALID", "INVALID"]
MAX_LAG_MS = 1.0
MIN_ISSUE_RATE = 0.98
MAX_GENERATOR_CPU = 0.8


@dataclass(slots=True, frozen=True)
class OpenRun:
    """An open loop's samples and how well the generator kept its schedule."""

    offered_rate: float
    """Requests a second that the schedule holds."""
    issued_rate: float
    """Requests a second that really left, up to the last one."""
    duration_s: float
    recording: Recording
    dropped: int
    lag_ms: dict[str, float]
    """Schedule lag: p50, p99 and max."""
    cpu_s: float
    wall_s: float
    reasons: tuple[str, ...]
    """Why the run is INVALID; empty for a VALID one."""
    start_ns: int = 0
    """When the measured part began (monotonic clock); the warm-up lies before."""
    mean_in_flight: float = 0.0
    """Requests under way, averaged over the measured part."""
    connections: int = 0

    @property
    def verdict(self) -> Verdict:
        """The tool's own judgement of its measurement."""
        return "INVALID" if self.reasons else "VALID"

    def within(self, slo_ms: float) -> float:
        """Right answers a second within ``slo_ms`` of the intended time: goodput at the SLO."""
        latencies = self.recording.latencies_us(Outcome.OK)
        return float(np.count_nonzero(latencies <= slo_ms * 1000)) / self.duration_s


class OpenLoop:
    """One run over ``schedule``; one request in ``cancel_every`` is given up ``cancel_after_s`` after it was sent."""

    def __init__(
        self,
        client: Client,
        workload: Workload,
        schedule: Schedule,
        *,
        ring: Sequence[Prepared] = (),
        start: int = 0,
        max_lag_ms: float = MAX_LAG_MS,
        cancel_every: int = 0,
        cancel_after_s: float = 0.02,
        tenant: Callable[[int], tuple[int, str | None]] | None = None,
        throttle_s: float = 0.0,
    ) -> None:
        """``tenant`` gives the number and the key of request ``index``; ``throttle_s`` slows the generator
        down on purpose, for the test that such a run is INVALID.
        """
        self._client = client
        self._workload = workload
        self._schedule = schedule
        self._ring = ring
        self._start = start
        self._max_lag_ms = max_lag_ms
        self._cancel_every = cancel_every
        self._cancel_after_s = cancel_after_s
        self._tenant = tenant
        self._throttle_s = throttle_s
        self._recording = Recording()
        self.answered = 0
        """2xx answers of the whole run, warm-up included."""
        self._outstanding = 0
        self._idle = asyncio.Event()

    async def run(self, duration_s: float, warmup_s: float = 0.0) -> OpenRun:
        """Send everything and wait for the last answer; samples of the first ``warmup_s`` are left out."""
        schedule = self._schedule
        dropped, queued = self._client.dropped, self._client.queued
        cpu = time.process_time()
        begin = time.monotonic_ns()
        sent = 0
        last_sent = begin
        with PreciseTimer() as timer:
            while sent < len(schedule):
                count, wait = due(schedule, sent, time.monotonic_ns() - begin)
                for index in range(sent, sent + count):
                    self._send(index, begin + int(schedule[index]))
                    if self._throttle_s:
                        time.sleep(self._throttle_s)  # noqa: ASYNC251 - the test's slow generator
                sent += count
                last_sent = time.monotonic_ns()
                if sent < len(schedule):
                    await timer.until(last_sent + wait if not count else begin + int(schedule[sent]))
        while self._outstanding - (self._client.dropped - dropped) > 0:
            self._idle.clear()
            await self._idle.wait()
        wall = (time.monotonic_ns() - begin) / 1e9
        return self._conclude(
            begin, duration_s, warmup_s, self._client.dropped - dropped, self._client.queued - queued,
            (last_sent - begin) / 1e9, time.process_time() - cpu, wall,
        )  # fmt: skip

    def _send(self, index: int, intended: int) -> None:
        payload, request = self._take(self._start + index)
        number, key = self._tenant(index) if self._tenant else (0, None)
        if key is not None:
            request = self._client.encode(payload, key)
        turn = time.monotonic_ns()

        def done(exchange: Exchange) -> None:
            self.answered += 200 <= exchange.status < 300
            outcome, fault = judge(self._workload, payload, exchange)
            self._recording.add(
                intended, turn, exchange.done_ns, outcome, max(0, exchange.status), len(exchange.body), number,
                bytes_out=len(request), fault=fault, timing=exchange.headers.get(TIMING),
            )  # fmt: skip
            self._outstanding -= 1
            self._idle.set()

        self._outstanding += 1
        exchange = self._client.submit(request, done, key)
        if self._cancel_every and index % self._cancel_every == 0:
            asyncio.get_running_loop().call_later(self._cancel_after_s, self._client.cancel, exchange)

    def _take(self, index: int) -> Prepared:
        if self._ring:
            return self._ring[index % len(self._ring)]
        payload = self._workload.request(index)
        return payload, self._client.encode(payload)

    def _conclude(
        self,
        begin: int,
        duration_s: float,
        warmup_s: float,
        dropped: int,
        queued: int,
        sending_s: float,
        cpu: float,
        wall: float,
    ) -> OpenRun:
        start, end = begin + int(warmup_s * 1e9), begin + int(duration_s * 1e9)
        recording = self._recording.since(start)
        lag = histogram_of(np.maximum(recording.lag_us(), 1))
        lags = {
            "p50": lag.get_value_at_percentile(50) / 1000,
            "p99": lag.get_value_at_percentile(99) / 1000,
            "max": lag.get_max_value() / 1000,
        }
        count = len(self._schedule)
        last_s = int(self._schedule[-1]) / 1e9 if count else 0.0
        scheduled = count / max(last_s, duration_s * 0.5)
        issued = (count - dropped) / max(sending_s, last_s, duration_s * 0.5)
        reasons = [
            *_unsent(len(recording), dropped, queued),
            *_late(lags["p99"], self._max_lag_ms, issued, scheduled, cpu / max(wall, 1e-9)),
        ]
        return OpenRun(
            count / duration_s, issued, max(1e-9, duration_s - warmup_s), recording, dropped, lags, cpu, wall,
            tuple(reasons), start, self._recording.mean_in_flight(start, end), self._client.most_connections,
        )  # fmt: skip


def _unsent(samples: int, dropped: int, queued: int) -> list[str]:
    reasons = []
    if not samples:
        reasons.append("no samples")
    if dropped:
        reasons.append(f"{dropped} requests were never sent: the generator's queue was full")
    if queued:
        reasons.append(f"{queued} requests waited in the generator for a connection: the server did not see them come")
    return reasons


def _late(lag_p99: float, max_lag: float, issued: float, scheduled: float, cpu_share: float) -> list[str]:
    reasons = []
    if lag_p99 > max_lag:
        reasons.append(f"schedule lag p99 is {lag_p99:.2f} ms, at most {max_lag:g} ms is allowed")
    if issued < scheduled * MIN_ISSUE_RATE:
        reasons.append(f"{issued:.0f} requests/s were issued of {scheduled:.0f} scheduled")
    if cpu_share > MAX_GENERATOR_CPU:
        reasons.append(f"the generator used {cpu_share:.0%} of a core, at most {MAX_GENERATOR_CPU:.0%} is allowed")
    return reasons


async def highest_rate(
    attempt: Callable[[float], object],
    low: float,
    high: float,
    *,
    precision: float = 0.05,
) -> float:
    """Binary search for the highest rate at which ``await attempt(rate)`` is true, to ``precision`` of itself.

    ``high`` is doubled up to six times while it still passes; 0 if even ``low`` fails.
    """

    async def passes(rate: float) -> bool:
        result = attempt(rate)
        if asyncio.iscoroutine(result):
            result = await result
        return bool(result)

    if not await passes(low):
        return 0.0
    for _ in range(6):
        if not await passes(high):
            break
        low, high = high, high * 2
    else:
        return low
    while high - low > precision * low:
        middle = (low + high) / 2
        if await passes(middle):
            low = middle
        else:
            high = middle
    return low
