"""The shared limiter: the same buckets and counters in Redis or Valkey, one script call a request.

A call that takes longer than ``timeout_s`` or fails is answered by the local limiter with this
gateway's share of every limit: neither open nor closed. After a few failures in a row Redis is left
alone for a moment, so that an outage does not cost every request the timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from gateway.access.limits import Cap, Gate, Rate, Verdict
from gateway.background import Background
from gateway.timeouts import timeout
from gateway.types import Units

log = structlog.get_logger(__name__)

PREFIX = "{tidegate}:"
"""The braces keep all keys in one slot of a cluster, as a script needs them."""

_FAILURES_TO_PAUSE = 3
_PAUSE_S = 1.0
_HEARTBEAT_S = 2.0
_GATEWAY_TTL_S = 10.0

_ASSUMED_GATEWAYS = 2
"""Before Redis has said how many there are: whoever shares limits is not alone."""

_CLOCK = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local function at_most(key, latest)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. string.format('%.6f', latest), '+inf')) do
    redis.call('ZADD', key, string.format('%.6f', latest), member)
  end
end
"""
"""Redis's own time, and what a step back of it would leave in the future brought back: nothing waits for a clock."""

_TAKE = (
    _CLOCK
    + """
local rates, member, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local refused, wait, left, tokens = 0, 0, {}, {}
for i = rates + 1, #KEYS do
  local limit = tonumber(ARGV[3 + rates * 3 + i - rates])
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  at_most(KEYS[i], now + lease)
  if refused == 0 and redis.call('ZCARD', KEYS[i]) >= limit then refused = i; wait = 1 end
end
for i = 1, rates do
  local capacity, rate, cost = tonumber(ARGV[1 + i * 3]), tonumber(ARGV[2 + i * 3]), tonumber(ARGV[3 + i * 3])
  local state = redis.call('HMGET', KEYS[i], 'tokens', 'at')
  local have = capacity
  if state[1] then
    local at = tonumber(state[2])
    if at > now then
      at = now
      redis.call('HSET', KEYS[i], 'at', string.format('%.6f', now))
    end
    have = math.min(capacity, tonumber(state[1]) + (now - at) * rate)
  end
  tokens[i] = have
  if cost > have + 0.000001 and refused <= rates then
    local missing = (cost - have) / rate
    if missing > wait then refused = i; wait = missing end
  end
end
for i = 1, rates do
  local have = tokens[i]
  if refused == 0 then
    local capacity, rate = tonumber(ARGV[1 + i * 3]), tonumber(ARGV[2 + i * 3])
    have = math.max(0, have - tonumber(ARGV[3 + i * 3]))
    redis.call('HSET', KEYS[i], 'tokens', string.format('%.9f', have), 'at', string.format('%.6f', now))
    redis.call('PEXPIRE', KEYS[i], math.ceil(capacity / rate * 1000) + 1000)
  end
  left[i] = string.format('%.6f', have)
end
if refused == 0 then
  for i = rates + 1, #KEYS do
    redis.call('ZADD', KEYS[i], now + lease, member)
    redis.call('PEXPIRE', KEYS[i], math.ceil(lease * 1000) + 1000)
  end
end
return {refused, string.format('%.6f', wait), left}
"""
)

_BEAT = (
    _CLOCK
    + """
redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - tonumber(ARGV[2])))
at_most(KEYS[1], now)
return redis.call('ZCARD', KEYS[1])
"""
)


class SharedLimiter:
    """Limits of all gateways together. ``start`` and ``stop`` run its background tasks."""

    def __init__(
        self,
        url: str,
        gateway_id: str,
        *,
        timeout_s: float = 0.005,
        lease_s: float = 330.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``lease_s``: seconds after which the place of a gateway that was killed is free again."""
        pool = BlockingConnectionPool.from_url(
            url, max_connections=32, timeout=60, socket_connect_timeout=max(1.0, timeout_s)
        )  # ``take`` waits for ``timeout_s`` in all, whatever it waits for
        self._redis: Redis = Redis(connection_pool=pool)
        self._take_script = self._redis.register_script(_TAKE)
        self._gateway_id = gateway_id
        self._timeout = timeout_s
        self._lease = lease_s
        self._clock = clock
        self._failures = 0
        self._paused_until = -math.inf
        self._releases: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._background = Background()
        self._questions: set[asyncio.Task[Any]] = set()
        self._sequence = 0
        self.gateways = _ASSUMED_GATEWAYS
        """Gateways that were alive at the last heartbeat; before the first that Redis answered, so many are assumed."""
        self.fallbacks = 0
        """Requests that the local limiter had to answer."""

    @property
    def available(self) -> bool:
        """Whether Redis is being asked at all."""
        return self._clock() >= self._paused_until

    async def start(self) -> None:
        """Connect, count the gateways, and begin to give places back."""
        await self._beat()
        self._background.every(_HEARTBEAT_S, self._beat, "limits heartbeat")
        self._background.every(0, self._release_some, "limits release")

    async def stop(self) -> None:
        """Give back what is held and disconnect."""
        await self._background.stop()
        if self._questions:
            await asyncio.wait(self._questions, timeout=1)
        with contextlib.suppress(RedisError, OSError, asyncio.TimeoutError):
            while not self._releases.empty():
                async with timeout(1):
                    await self._redis.zrem(*self._releases.get_nowait())
            async with timeout(1):
                await self._redis.zrem(f"{PREFIX}gateways", self._gateway_id)
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def take(self, gate: Gate, units: Units) -> tuple[Verdict, str] | None:
        """Take all of ``gate`` or nothing; with the verdict comes the name of the places held.

        None: Redis did not answer in time; ask the local limiter.
        """
        if not self.available:
            self.fallbacks += 1
            return None
        self._sequence += 1
        member = f"{self._gateway_id}:{self._sequence}"
        keys = [PREFIX + rate.subject for rate in gate.rates] + [PREFIX + cap.subject for cap in gate.caps]
        arguments: list[Any] = [len(gate.rates), member, self._lease]
        for rate in gate.rates:
            arguments += (rate.capacity, rate.per_second, rate.cost(units))
        arguments += [cap.limit for cap in gate.caps]
        question = self._begin(self._take_script(keys=keys, args=arguments))
        try:
            reply = await _answer(question, self._timeout)
        except (RedisError, OSError, asyncio.TimeoutError, asyncio.CancelledError) as error:
            # It may be executed all the same: once it is over, what it took is given back.
            question.add_done_callback(lambda _question: self.release(gate, member))
            if isinstance(error, asyncio.CancelledError):
                raise
            self._failed(error)
            return None
        self._failures = 0
        refused, wait, left = int(reply[0]), float(reply[1]), tuple(float(value) for value in reply[2])
        limits: tuple[Rate | Cap, ...] = (*gate.rates, *gate.caps)
        return Verdict(limits[refused - 1] if refused else None, wait, left), member

    def release(self, gate: Gate, member: str) -> None:
        """Give back places; in the background, so that no reply waits for it."""
        for cap in gate.caps:
            self._releases.put_nowait((PREFIX + cap.subject, member))

    def _begin(self, question: Awaitable[Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(question)
        self._questions.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, question: asyncio.Task[Any]) -> None:
        self._questions.discard(question)
        if not question.cancelled():
            question.exception()  # nobody need wait for it any more

    def _failed(self, error: BaseException) -> None:
        self.fallbacks += 1
        self._failures += 1
        if self._failures >= _FAILURES_TO_PAUSE:
            self._paused_until = self._clock() + _PAUSE_S
            if self._failures == _FAILURES_TO_PAUSE:
                log.warning("limits.local", error=type(error).__name__)

    async def _beat(self) -> None:
        try:
            beat = self._redis.eval(_BEAT, 1, f"{PREFIX}gateways", self._gateway_id, _GATEWAY_TTL_S)
            self.gateways = max(1, int(await _answer(self._begin(beat), 1)))
        except (RedisError, OSError, asyncio.TimeoutError):
            return  # the last count stands

    async def _release_some(self) -> None:
        pending = [await self._releases.get()]
        while not self._releases.empty() and len(pending) < 256:
            pending.append(self._releases.get_nowait())
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key, member in pending:
                    pipeline.zrem(key, member)
                await _answer(self._begin(pipeline.execute()), 1)
        except (RedisError, OSError, asyncio.TimeoutError):
            for item in pending:
                self._releases.put_nowait(item)
            await asyncio.sleep(_PAUSE_S)  # the places expire with their lease at the latest


async def _answer(question: asyncio.Task[Any], timeout_s: float) -> Any:
    """What a question is answered with. Raises what it raises, and ``asyncio.TimeoutError`` after ``timeout_s``.

    Not ``asyncio.wait_for``: that waits until a cancelled question has ended, and redis-py, in the middle of
    connecting, does not always let itself be cancelled.
    """
    try:
        done, _ = await asyncio.wait({question}, timeout=timeout_s)
    except asyncio.CancelledError:
        question.cancel()
        raise
    if not done:
        question.cancel()
        raise asyncio.TimeoutError
    return question.result()
