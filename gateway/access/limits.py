"""Limits, and the local limiter: token buckets and concurrency counters in this process's memory.

Own buckets and not the ``limits`` library: there each limit costs a call of its own, and another one to
read what is left for the headers;
it has no burst beside the rate and no concurrency, and several limits are taken one after the other,
so that a refusal by the second has already spent the first. Here all limits of a request are taken
together or not at all.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gateway.types import Units

Level = Literal["key", "project", "organisation", "model"]
Kind = Literal["requests", "tokens", "pixels", "rows", "concurrency"]

_MINUTE = 60.0


class Limits(BaseModel):
    """What a key's tier, or a rule for a project, an organisation or a model, allows. None: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_second: Annotated[float, Field(gt=0, le=1e6)] | None = None
    burst: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Requests at once after a pause; default: one second's worth."""
    concurrency: Annotated[int, Field(ge=1, le=10**6)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10**12)] | None = None
    pixels_per_minute: Annotated[int, Field(ge=1, le=10**15)] | None = None
    rows_per_minute: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Texts, pictures or rows of raw tensors: a batch counts as what is in it."""
    max_priority: Annotated[int, Field(ge=0, le=10)] | None = None
    """Highest priority that a request may ask for: 1 is Triton's highest, 0 forbids asking (tiers only)."""
    max_timeout_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    """Longest deadline that a request may ask for (tiers only)."""

    @property
    def effective_burst(self) -> int | None:
        """Requests at once after a pause, as written or as the rate implies; None: neither is limited."""
        if self.burst is not None or self.requests_per_second is None:
            return self.burst
        return max(1, math.floor(self.requests_per_second))

    def narrowed(self, other: Limits) -> Limits:
        """Return the tighter of each limit of both; a burst counts as what it is beside its own rate."""
        merged = self.model_dump(exclude_none=True)
        for name, value in other.model_dump(exclude_none=True).items():
            merged[name] = min(value, merged.get(name, value))
        bursts = [limits.effective_burst for limits in (self, other)]
        merged["burst"] = min((burst for burst in bursts if burst is not None), default=None)
        return Limits(**merged)


@dataclass(slots=True, frozen=True)
class Rate:
    """A token bucket's definition: ``capacity`` at once, ``per_second`` of it back."""

    name: str
    """``key_requests``, ``project_tokens``, …: letters and underscores only, as clients parse it."""
    subject: str
    """Whose bucket it is: level, name and kind."""
    kind: Kind
    capacity: float
    per_second: float

    @property
    def window_s(self) -> int:
        """Seconds in which the whole capacity comes back."""
        return max(1, math.ceil(self.capacity / self.per_second))

    def cost(self, units: Units) -> float:
        """What a request with ``units`` takes out of the bucket."""
        if self.kind == "requests":
            return 1.0
        return float({"tokens": units.tokens, "pixels": units.pixels}.get(self.kind, units.rows))


@dataclass(slots=True, frozen=True)
class Cap:
    """A concurrency limit's definition."""

    name: str
    subject: str
    limit: int


@dataclass(slots=True, frozen=True)
class Gate:
    """Every limit that applies to one key's calls of one model."""

    rates: tuple[Rate, ...] = ()
    caps: tuple[Cap, ...] = ()
    policy: str = ""
    """The ``RateLimit-Policy`` header, in the order of ``rates`` and ``caps``."""


class Verdict(msgspec.Struct, frozen=True):
    """What a limiter says to a request."""

    refused: Rate | Cap | None
    wait_s: float
    """Until it would be let through, if refused."""
    remaining: tuple[float, ...]
    """What is left in the gate's rates, in their order."""


def gate_of(levels: list[tuple[Level, str, Limits]]) -> Gate:
    """Put the limits of several levels together."""
    rates: list[Rate] = []
    caps: list[Cap] = []
    for level, name, limits in levels:
        if limits.requests_per_second is not None:
            rates.append(_rate(level, name, "requests", limits.effective_burst or 1, limits.requests_per_second))
        if limits.tokens_per_minute is not None:
            rates.append(_rate(level, name, "tokens", limits.tokens_per_minute, limits.tokens_per_minute / _MINUTE))
        if limits.pixels_per_minute is not None:
            rates.append(_rate(level, name, "pixels", limits.pixels_per_minute, limits.pixels_per_minute / _MINUTE))
        if limits.rows_per_minute is not None:
            rates.append(_rate(level, name, "rows", limits.rows_per_minute, limits.rows_per_minute / _MINUTE))
        if limits.concurrency is not None:
            caps.append(Cap(f"{level}_concurrency", f"{level}:{name}:concurrency", limits.concurrency))
    items = [f'"{rate.name}";q={int(rate.capacity)};w={rate.window_s}' for rate in rates]
    items += [f'"{cap.name}";q={cap.limit};qu="concurrent-requests"' for cap in caps]
    return Gate(tuple(rates), tuple(caps), ",".join(items))


def _rate(level: Level, name: str, kind: Kind, capacity: float, per_second: float) -> Rate:
    return Rate(f"{level}_{kind}", f"{level}:{name}:{kind}", kind, float(capacity), per_second)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(slots=True)
class LocalLimiter:
    """Buckets and counters of one process. Pure: ``now`` is the caller's monotonic clock, in seconds."""

    size: int = 100_000
    """Buckets kept; beyond it the least recently used are forgotten, that is: full again."""
    _buckets: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)
    _in_use: dict[str, int] = field(default_factory=dict)

    def take(self, gate: Gate, units: Units, now: float, share: float = 1.0) -> Verdict:
        """Take everything that ``gate`` asks for, or nothing.

        ``share`` narrows every limit to this gateway's part where limits should have been shared.
        """
        for cap in gate.caps:
            if self._in_use.get(cap.subject, 0) >= max(1, int(cap.limit * share)):
                return Verdict(cap, 1.0, _remaining([self._peek(rate, now, share) for rate in gate.rates]))
        taken: list[tuple[_Bucket, float]] = []
        refused: Rate | None = None
        wait = 0.0
        for rate in gate.rates:
            bucket = self._peek(rate, now, share)
            cost = rate.cost(units)
            # What a share never holds, though the limit does, is let through when the share is full, and owed.
            needed = min(cost, _capacity(rate, share))
            if needed > bucket.tokens + 1e-9:
                missing = (needed - bucket.tokens) / (rate.per_second * share)
                if missing > wait:
                    refused, wait = rate, missing
            taken.append((bucket, cost))
        if refused is not None:
            return Verdict(refused, wait, _remaining([bucket for bucket, _ in taken]))
        for bucket, cost in taken:
            bucket.tokens -= cost
        for cap in gate.caps:
            self._in_use[cap.subject] = self._in_use.get(cap.subject, 0) + 1
        return Verdict(None, 0.0, _remaining([bucket for bucket, _ in taken]))

    def check(self, gate: Gate, now: float, share: float = 1.0) -> Verdict:
        """What :meth:`take` would say to a request without tokens and pixels; nothing is taken."""
        remaining = _remaining([self._peek(rate, now, share) for rate in gate.rates])
        for cap in gate.caps:
            if self._in_use.get(cap.subject, 0) >= max(1, int(cap.limit * share)):
                return Verdict(cap, 1.0, remaining)
        for rate, tokens in zip(gate.rates, remaining, strict=True):
            if rate.kind == "requests" and tokens < 1 - 1e-9:
                return Verdict(rate, (1 - tokens) / (rate.per_second * share), remaining)
        return Verdict(None, 0.0, remaining)

    def release(self, gate: Gate) -> None:
        """Give back the places in ``gate``'s concurrency counters."""
        for cap in gate.caps:
            left = self._in_use[cap.subject] - 1
            if left:
                self._in_use[cap.subject] = left
            else:
                del self._in_use[cap.subject]

    def in_use(self, subject: str) -> int:
        """Return how many places of a concurrency counter are taken."""
        return self._in_use.get(subject, 0)

    def _peek(self, rate: Rate, now: float, share: float) -> _Bucket:
        capacity = _capacity(rate, share)
        bucket = self._buckets.get(rate.subject)
        if bucket is None:
            bucket = self._buckets[rate.subject] = _Bucket(capacity, now)
            if len(self._buckets) > self.size:
                self._buckets.popitem(last=False)
            return bucket
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.at) * rate.per_second * share)
        bucket.at = now
        self._buckets.move_to_end(rate.subject)
        return bucket


def _capacity(rate: Rate, share: float) -> float:
    return max(1.0, rate.capacity * share)


def _remaining(buckets: list[_Bucket]) -> tuple[float, ...]:
    return tuple(max(0.0, bucket.tokens) for bucket in buckets)


def headers_of(gate: Gate, verdict: Verdict) -> dict[str, str]:
    """Write the rate-limit headers of a reply: the IETF draft's, tightest first, and ``x-ratelimit-*``."""
    if not gate.policy:
        return {}
    headers = {"RateLimit-Policy": gate.policy}
    items: list[tuple[float, str]] = []
    by_kind: dict[str, tuple[float, float, float]] = {}
    for rate, tokens in zip(gate.rates, verdict.remaining, strict=True):
        left = int(tokens)
        if rate is verdict.refused:
            reset, tightness, left = verdict.wait_s, -1.0, 0 if rate.kind == "requests" else left
        else:
            reset, tightness = (rate.capacity - tokens) / rate.per_second, tokens / rate.capacity
        items.append((tightness, f'"{rate.name}";r={left};t={math.ceil(reset)}'))
        known = by_kind.get(rate.kind)
        if known is None or left < known[1]:
            by_kind[rate.kind] = (rate.capacity, left, reset)
    if isinstance(verdict.refused, Cap):
        items.append((-1.0, f'"{verdict.refused.name}";r=0;t={math.ceil(verdict.wait_s)}'))
    if items:
        items.sort(key=lambda item: item[0])
        headers["RateLimit"] = ",".join(item[1] for item in items)
    for kind in ("requests", "tokens"):
        if kind in by_kind:
            limit, left_of_kind, reset = by_kind[kind]
            headers[f"x-ratelimit-limit-{kind}"] = str(int(limit))
            headers[f"x-ratelimit-remaining-{kind}"] = str(int(left_of_kind))
            headers[f"x-ratelimit-reset-{kind}"] = f"{math.ceil(reset * 1000)}ms"
    return headers
