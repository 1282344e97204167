"""Brute force: how many refused keys an address may present before it has to wait."""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import OrderedDict

from gateway.access.audit import SYSTEM, Actor, Audit

_MAX_REASONS = 32
_POLICY = "address_refusals"


class Throttle:
    """A token bucket of refusals for each client address; IPv6 addresses count by /64.

    Bounded: the least recently refused addresses are forgotten. Pure: ``now`` is the caller's
    monotonic clock, in seconds.
    """

    def __init__(
        self, *, burst: int = 20, per_second: float = 0.5, probes_per_second: float = 5.0, size: int = 10_000
    ) -> None:
        self._burst = burst
        self._rate = per_second
        self._probe_rate = probes_per_second
        self._size = size
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._probes: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Return the seconds that ``address`` has to wait; 0 if it need not."""
        if address not in self._buckets and ":" not in address:
            return 0.0  # nearly every request: the address has never been refused
        tokens = self._tokens(self._buckets, subnet(address), now, self._burst, self._rate)
        return 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate

    def headers(self, wait_s: float) -> dict[str, str]:
        """Write what an address that has to wait is told of the limit, as the IETF draft has it."""
        policy = f'"{_POLICY}";q={self._burst};w={math.ceil(self._burst / self._rate)}'
        return {"RateLimit-Policy": policy, "RateLimit": f'"{_POLICY}";r=0;t={math.ceil(wait_s)}'}

    def probe(self, address: str, now: float) -> bool:
        """Whether an address that has to wait may have one more key looked up, a few a second.

        Who shares a proxy's address with an attacker gets in with a valid key; the attacker learns
        nothing, and the database sees a trickle.
        """
        network = subnet(address)
        tokens = self._tokens(self._probes, network, now, self._probe_rate, self._probe_rate)
        self._put(self._probes, network, max(0.0, tokens - 1.0) if tokens >= 1.0 else tokens, now)
        return tokens >= 1.0

    def refuse(self, address: str, now: float) -> None:
        """Count a refusal."""
        network = subnet(address)
        tokens = self._tokens(self._buckets, network, now, self._burst, self._rate)
        self._put(self._buckets, network, max(0.0, tokens - 1.0), now)

    def _put(self, buckets: OrderedDict[str, tuple[float, float]], network: str, tokens: float, now: float) -> None:
        buckets[network] = (tokens, now)
        buckets.move_to_end(network)
        while len(buckets) > self._size:
            buckets.popitem(last=False)

    @staticmethod
    def _tokens(
        buckets: OrderedDict[str, tuple[float, float]], network: str, now: float, burst: float, rate: float
    ) -> float:
        tokens, at = buckets.get(network, (burst, now))
        return min(float(burst), tokens + (now - at) * rate)


class Refusals:
    """Refused credentials on their way to the audit: counted by address, written in batches.

    An attacker fills neither the memory nor the disk: at most ``size`` addresses are counted at a
    time, and each gets at most one record a flush interval, the first at the next flush.
    """

    def __init__(self, audit: Audit, *, interval_s: float = 60.0, size: int = 256) -> None:
        self._audit = audit
        self._interval = interval_s
        self._size = size
        self._counts: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._written: OrderedDict[str, float] = OrderedDict()
        self._flushing = asyncio.Lock()

    def note(self, address: str, reason: str) -> None:
        """Count a refusal; ``reason`` is one of a few fixed words."""
        network = subnet(address)
        if network not in self._counts and len(self._counts) >= self._size:
            network = "others"
        reasons = self._counts.setdefault(network, {})
        if reason not in reasons and len(reasons) >= _MAX_REASONS:
            reason = "other"
        reasons[reason] = reasons.get(reason, 0) + 1

    async def flush(self, now: float, *, all_: bool = False) -> None:
        """Write what is due. Raises ``Unavailable``; what was not written stays counted."""
        async with self._flushing:  # the last flush may meet one that is under way: nothing is written twice
            await self._flush(now, all_=all_)

    async def _flush(self, now: float, *, all_: bool) -> None:
        due = [
            network
            for network in self._counts
            if all_ or now - self._written.get(network, float("-inf")) >= self._interval
        ]
        for network in due:
            reasons = self._counts[network]
            snapshot = dict(reasons)
            await self._audit.record(
                Actor(SYSTEM.name, address=network), "auth.refused", network, result="denied", details=snapshot
            )
            self._written[network] = now
            self._written.move_to_end(network)
            while len(self._written) > self._size:
                self._written.popitem(last=False)
            left = {reason: count - snapshot.get(reason, 0) for reason, count in reasons.items()}
            left = {reason: count for reason, count in left.items() if count}
            if left:
                self._counts[network] = left
            else:
                del self._counts[network]


def subnet(address: str) -> str:
    """Return what an address counts as: itself, or the /64 network of an IPv6 address."""
    if ":" not in address:
        return address[:64]
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
