"""The load generator measures itself: pauses must show, and a generator that cannot keep up must say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop, prepare
from benchmarks.http_client import HttpPool
from benchmarks.openloop import OpenLoop, OpenRun, highest_rate
from benchmarks.pacing import constant
from benchmarks.recording import Latency, Outcome, histogram_of
from benchmarks.workloads import WORKLOADS

RATE = 2000.0
PAUSE_S = 1.4


async def _run(
    url: str, rate: float, duration_s: float, *, throttle_s: float = 0.0, max_lag_ms: float = 1.0
) -> OpenRun:
    workload = WORKLOADS["identity"](1)
    async with connect(url, None, limit=512, timeout_s=10) as client:
        await client.warm(32)
        ring = prepare(client, workload, 256)
        schedule = constant(rate, duration_s)
        loop = OpenLoop(client, workload, schedule, ring=ring, throttle_s=throttle_s, max_lag_ms=max_lag_ms)
        return await loop.run(duration_s)


@pytest.mark.slow
@pytest.mark.alone
async def test_a_pause_of_the_server_is_seen_by_everyone_who_would_have_waited(
    start_server: Callable[..., str],
) -> None:
    # wrk2's oracle is 1.4 s in 30 s; here 5 s, so 28 % of the requests fall into the pause and p99 is
    # near its whole length. The server imposes the delay: how fast this machine is does not matter.
    run = await _run(start_server(1.0, PAUSE_S), RATE, 5.0)
    assert len(run.recording) == int(RATE * 5)
    assert run.recording.count(Outcome.OK) == len(run.recording)
    latency = Latency.of(histogram_of(run.recording.latencies_us()))
    assert latency.percentiles["p99"] is not None
    assert latency.percentiles["p99"] >= 1000
    assert latency.max is not None
    assert latency.max >= 1300


async def test_a_closed_loop_hides_the_same_pause(start_server: Callable[..., str]) -> None:
    workload = WORKLOADS["identity"](1)
    async with connect(start_server(1.0, PAUSE_S), None) as client:
        run = await ClosedLoop(client, workload, 4, ring=prepare(client, workload, 64)).run(4.0)
    slow = int((run.recording.latencies_us() > 1_000_000).sum())
    assert 0 < slow <= 4  # at most one request of each user; that is why rates are not measured this way


async def test_a_throttled_generator_says_invalid(start_server: Callable[..., str]) -> None:
    run = await _run(start_server(), RATE, 1.0, throttle_s=0.001)  # cannot send more than 1,000 a second
    assert run.verdict == "INVALID"
    assert any("schedule lag" in reason for reason in run.reasons)
    assert any("issued" in reason for reason in run.reasons)


async def test_a_request_beyond_the_queue_is_dropped_and_makes_the_run_invalid(
    start_server: Callable[..., str],
) -> None:
    workload = WORKLOADS["identity"](1)
    async with HttpPool(start_server(0.0, 1.0), limit=2, waiting_limit=10) as client:
        await client.warm(2)
        run = await OpenLoop(client, workload, constant(200, 0.5), max_lag_ms=1e6).run(0.5)
    assert run.dropped > 0
    assert run.verdict == "INVALID"
    assert len(run.recording) + run.dropped == 100


async def test_a_request_that_waits_in_the_generator_makes_the_run_invalid(start_server: Callable[..., str]) -> None:
    workload = WORKLOADS["identity"](1)
    async with HttpPool(start_server(0.0, 0.5), limit=2) as client:  # all are sent in the end, but not when they say
        await client.warm(2)
        run = await OpenLoop(client, workload, constant(200, 0.3), max_lag_ms=1e6).run(0.3)
    assert run.dropped == 0
    assert run.recording.count(Outcome.OK) == len(run.recording) == 60
    assert any("waited in the generator" in reason for reason in run.reasons)
    assert run.connections == 2


async def test_with_a_connection_for_each_request_the_queue_is_the_servers(start_server: Callable[..., str]) -> None:
    workload = WORKLOADS["identity"](1)
    async with HttpPool(start_server(0.0, 0.5), limit=100) as client:
        run = await OpenLoop(client, workload, constant(200, 0.3), max_lag_ms=1e6).run(0.3)
    assert not any("waited in the generator" in reason for reason in run.reasons)
    assert run.mean_in_flight > 10  # nearly all wait for the server at once


async def test_one_in_so_many_is_given_up_and_not_judged(start_server: Callable[..., str]) -> None:
    workload = WORKLOADS["identity"](1)
    async with HttpPool(start_server(0.0, 0.4), limit=500) as client:
        loop = OpenLoop(client, workload, constant(400, 0.5), max_lag_ms=1e6, cancel_every=10, cancel_after_s=0.01)
        run = await loop.run(0.5)
    assert 10 <= run.recording.count(Outcome.CANCELLED) <= 20  # those of the first 0.4 s at least
    assert run.recording.meets(95, 5000)


async def test_a_server_that_is_gone_is_an_error_not_a_hang(start_server: Callable[..., str]) -> None:
    run = await _run_unreachable()
    assert run.recording.count(Outcome.ERROR) == len(run.recording) == 50


async def _run_unreachable() -> OpenRun:
    workload = WORKLOADS["identity"](1)
    async with connect("http://127.0.0.1:9", None) as client:
        return await OpenLoop(client, workload, constant(50, 1.0)).run(1.0)


@pytest.mark.parametrize("capacity", [3.0, 47.0, 130.0])
async def test_the_search_finds_the_highest_rate(capacity: float) -> None:
    found = await highest_rate(lambda rate: rate <= capacity, 1.0, 40.0, precision=0.02)
    assert capacity * 0.97 <= found <= capacity


async def test_the_search_says_zero_when_nothing_passes() -> None:
    assert await highest_rate(lambda rate: False, 1.0, 40.0) == 0.0
