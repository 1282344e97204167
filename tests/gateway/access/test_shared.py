from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import redis

from gateway.access.limits import Limits, gate_of
from gateway.access.shared import PREFIX, SharedLimiter
from gateway.types import Units

pytestmark = pytest.mark.redis


@pytest.fixture
async def make_limiter(redis_server):
    limiters = []

    async def make(name, *, timeout_s=20.0, **values):
        limiter = SharedLimiter(redis_server.url, name, timeout_s=timeout_s, **values)
        await limiter.start()
        limiters.append(limiter)
        return limiter

    yield make
    redis_server.thaw() if redis_server._process else None
    for limiter in limiters:
        await limiter.stop()


@pytest.fixture
async def slow_redis(redis_server):
    """The URL of the Redis behind a network that takes 200 ms for every answer."""
    pipes = []

    async def pipe(reader, writer, delay_s):
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(delay_s)
                writer.write(data)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def serve(reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(redis_server.socket))
        pipes.append(asyncio.create_task(pipe(reader, upstream_writer, 0)))
        pipes.append(asyncio.create_task(pipe(upstream_reader, writer, 0.2)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in pipes:
        task.cancel()
    await asyncio.gather(*pipes, return_exceptions=True)


def key_gate(**limits):
    return gate_of([("key", "k", Limits(**limits))])


async def test_the_limit_holds_over_gateways(make_limiter):
    one, two = await make_limiter("one"), await make_limiter("two")
    gate = key_gate(requests_per_second=0.001, burst=50)
    calls = [limiter.take(gate, Units()) for limiter in (one, two) * 60]
    verdicts = [answer[0] for answer in await asyncio.gather(*calls)]
    assert sum(verdict.refused is None for verdict in verdicts) == 50
    refused = next(verdict for verdict in verdicts if verdict.refused)
    assert refused.refused.name == "key_requests"
    assert refused.wait_s > 0


async def test_all_is_taken_or_nothing(make_limiter):
    limiter = await make_limiter("one")
    gate = gate_of(
        [("key", "k", Limits(requests_per_second=0.001, burst=3)), ("project", "p", Limits(tokens_per_minute=60))]
    )
    assert (await limiter.take(gate, Units(tokens=60)))[0].refused is None
    for _ in range(5):
        assert (await limiter.take(gate, Units(tokens=60)))[0].refused.name == "project_tokens"
    verdict, _ = await limiter.take(gate, Units())
    assert verdict.refused is None
    assert verdict.remaining[0] == pytest.approx(1.0, abs=0.01)


async def test_places_are_shared_and_given_back(make_limiter):
    one, two = await make_limiter("one"), await make_limiter("two")
    gate = key_gate(concurrency=2)
    _, first = await one.take(gate, Units())
    await two.take(gate, Units())
    assert (await two.take(gate, Units()))[0].refused.name == "key_concurrency"
    one.release(gate, first)
    deadline = time.monotonic() + 10
    while (await two.take(gate, Units()))[0].refused is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_places_of_a_gateway_that_died_are_free_again(make_limiter):
    one, two = await make_limiter("one", lease_s=0.3), await make_limiter("two")
    gate = key_gate(concurrency=1)
    assert (await one.take(gate, Units()))[0].refused is None
    assert (await two.take(gate, Units()))[0].refused is not None
    deadline = time.monotonic() + 10
    while (await two.take(gate, Units()))[0].refused is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_gateways_count_each_other(make_limiter):
    one = await make_limiter("one")
    assert one.gateways == 1
    two = await make_limiter("two")
    assert two.gateways == 2
    await one._beat()
    assert one.gateways == 2


async def test_redis_killed_is_the_local_limiters_turn_until_it_is_back(make_limiter, redis_server):
    limiter = await make_limiter("one")
    gate = key_gate(requests_per_second=5)
    assert await limiter.take(gate, Units()) is not None
    redis_server.stop()
    for _ in range(5):
        assert await limiter.take(gate, Units()) is None
    assert limiter.fallbacks == 5
    assert not limiter.available
    redis_server.start()
    deadline = time.monotonic() + 20
    while await limiter.take(gate, Units()) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_redis_that_hangs_costs_no_more_than_the_timeout(make_limiter, redis_server):
    limiter = await make_limiter("one", timeout_s=0.2)
    gate = key_gate(requests_per_second=5, concurrency=5)
    assert await limiter.take(gate, Units()) is not None
    redis_server.freeze()
    answers = [await limiter.take(gate, Units()) for _ in range(3)]
    assert answers == [None] * 3
    assert not limiter.available  # the next ones do not even ask
    assert await limiter.take(gate, Units()) is None
    redis_server.thaw()


async def test_redis_that_takes_200_ms_is_not_waited_for(slow_redis):
    limiter = SharedLimiter(slow_redis, "one")  # with the time that a gateway gives it
    await limiter.start()
    try:
        gate = key_gate(requests_per_second=5, concurrency=5)
        assert [await limiter.take(gate, Units()) for _ in range(20)] == [None] * 20
        assert limiter.fallbacks == 20
        assert limiter._sequence < 20  # after the first few it was not even asked
    finally:
        await limiter.stop()


async def test_counters_lost_are_counters_full_again(make_limiter, redis_server):
    limiter = await make_limiter("one")
    gate = key_gate(requests_per_second=0.001, burst=3)
    for _ in range(3):
        await limiter.take(gate, Units())
    assert (await limiter.take(gate, Units()))[0].refused is not None
    redis_server.flush()
    passed = [(await limiter.take(gate, Units()))[0].refused is None for _ in range(10)]
    assert sum(passed) == 3  # one burst of overspend at most


@pytest.fixture
def planted(redis_server):
    """A client that writes what Redis would hold had its clock been an hour ahead, and that hour's end."""
    with redis.Redis.from_url(redis_server.url) as client:
        yield client, client.time()[0] + 3600


async def until_passed(limiter, gate):
    deadline = time.monotonic() + 20
    while (await limiter.take(gate, Units()))[0].refused is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_clock_stepped_back_locks_nobody_out(make_limiter, planted):
    client, ahead = planted
    limiter = await make_limiter("one")
    gate = key_gate(requests_per_second=10, burst=1)
    client.hset(PREFIX + gate.rates[0].subject, mapping={"tokens": 0, "at": ahead})
    assert (await limiter.take(gate, Units()))[0].refused is not None
    await until_passed(limiter, gate)


async def test_places_taken_before_a_clock_was_stepped_back_end_with_their_lease(make_limiter, planted):
    client, ahead = planted
    limiter = await make_limiter("one", lease_s=0.3)
    gate = key_gate(concurrency=1)
    client.zadd(PREFIX + gate.caps[0].subject, {"dead:1": ahead})
    assert (await limiter.take(gate, Units()))[0].refused is not None
    await until_passed(limiter, gate)


async def test_gateways_are_counted_by_redis_own_clock(make_limiter, planted):
    client, ahead = planted
    client.zadd(f"{PREFIX}gateways", {"ahead": ahead, "behind": 1})
    one = await make_limiter("one")
    assert one.gateways == 2
    assert client.zscore(f"{PREFIX}gateways", "ahead") < ahead - 3000  # it has as long as the others from now on


async def test_a_call_that_goes_away_while_redis_is_asked_keeps_no_place(make_limiter, redis_server):
    limiter = await make_limiter("one")
    gate = key_gate(concurrency=1)
    assert await limiter.take(key_gate(requests_per_second=5), Units()) is not None
    redis_server.freeze()
    call = asyncio.create_task(limiter.take(gate, Units()))
    await asyncio.sleep(0)
    assert not call.done()
    for _ in range(3):
        await asyncio.sleep(0.01)  # the question is on its way, and stays unanswered
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    redis_server.thaw()
    await until_passed(limiter, gate)


async def test_a_gateway_that_starts_while_redis_is_away_takes_no_whole_limit(make_limiter, redis_server):
    redis_server.stop()
    limiter = await make_limiter("one")
    assert limiter.gateways == 2
    redis_server.start()
    await limiter._beat()
    assert limiter.gateways == 1
