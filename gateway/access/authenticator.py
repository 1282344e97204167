"""Who calls: a presented key or token becomes a :class:`~gateway.types.Principal`.

A verified credential is remembered for ``key_cache_ttl_s`` from the moment its lookup began: that is
the revocation bound of every gateway, and within it a call costs a digest and a dictionary look-up.
Half-way through, the next use starts a new look-up in the background, so that a key in use never
waits for the database; of many calls with one key only one looks it up. While the database is away,
what was verified in the last ``key_outage_ttl_s`` goes on working and nothing else does. Keys and tokens
come from sources of their own: a token's provider that is away stretches no key's revocation.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import math
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from gateway.access import keyformat
from gateway.access.key import VerifiedKey
from gateway.access.keys import Keys
from gateway.access.throttle import Refusals, Throttle
from gateway.background import Background
from gateway.errors import Forbidden, RateLimited, Unauthenticated, Unavailable
from gateway.settings import Settings
from gateway.timeouts import timeout
from gateway.types import Call, Principal

log = structlog.get_logger(__name__)

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Value = TypeVar("_Value")

LOOKUP_TIMEOUT_S = 1.0
"""A slower database counts as one that is away."""
_OUTAGE_PAUSE_S = 1.0
_NEGATIVE_TTL_S = 5.0
_MAX_LOOKUPS = 32
_FLUSH_S = 1.0
_TOUCH_EVERY = 30
"""Flushes between writings of last-used times."""


@dataclass(slots=True, frozen=True)
class Verified:
    """Who a credential stands for, until when at the latest (seconds since the epoch), and from where."""

    principal: Principal
    valid_until: float | None
    networks: tuple[_Network, ...] | None = None


class TokenVerifier(Protocol):
    """What verifies bearer tokens that are no API keys."""

    async def verify(self, token: str) -> Verified | None:
        """None for a token that is not valid; raises ``Unavailable`` when that cannot be told."""


@dataclass(slots=True)
class _Source:
    """Who is asked about credentials of one kind: how many questions at once, and whether it answers."""

    verify: Callable[[str], Awaitable[Verified | None]]
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_LOOKUPS))
    away_until: float = -math.inf


@dataclass(slots=True)
class _Entry:
    verified: Verified
    source: _Source
    refresh_at: float
    fresh_until: float
    stale_until: float
    ends_at: float
    used: bool = True


class Authenticator:
    """Verifies credentials for one process. ``start`` and ``stop`` run its background task."""

    def __init__(
        self,
        keys: Keys,
        settings: Settings,
        *,
        refusals: Refusals | None = None,
        tokens: TokenVerifier | None = None,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._key_source = _Source(self._verify_key)
        self._token_source = None if tokens is None else _Source(tokens.verify)
        self._refusals = refusals
        self._throttle = throttle or Throttle()
        self._clock = clock
        self._wall_clock = wall_clock
        self._ttl = settings.key_cache_ttl_s
        self._outage_ttl = max(settings.key_outage_ttl_s, settings.key_cache_ttl_s)
        self._size = settings.key_cache_size
        self._salt = secrets.token_bytes(16)  # what is remembered cannot be precomputed, and is no key
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._flights: dict[bytes, asyncio.Task[_Entry | None]] = {}
        self._last_used: dict[str, float] = {}
        self._background = Background()
        self._rounds = 0
        keys.on_change(self.forget)
        self.lookups = 0
        """Questions put to the database or the token verifier."""
        self.refused = 0
        """Credentials refused with 401."""
        self.throttled = 0
        """Calls refused with 429 because of earlier refusals."""
        self.stale = 0
        """Calls answered from a look-up older than the revocation bound, the database being away."""

    async def start(self) -> None:
        """Begin to write refusals to the audit and last-used times to the store."""
        self._background.every(_FLUSH_S, self._flush_some, "authenticator")

    async def stop(self) -> None:
        """Write what is left, and end."""
        await self._background.stop()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)  # a second each at most
        await self._flush(touch=True, all_=True)

    async def authenticate(self, call: Call) -> Principal:
        """Return who makes ``call``, by ``call.credential`` and ``call.client_address``.

        Raises ``Unauthenticated`` (no credential, or one that is not valid: not said which),
        ``Forbidden`` (an address that the key may not be used from), ``RateLimited`` (too many
        refusals from this address) and ``Unavailable`` (the database does not answer).
        """
        credential = call.credential
        if credential is None:
            raise unauthenticated()
        digest = hashlib.blake2b(credential.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=16).digest()
        entry = self._entries.get(digest)
        now = self._clock()
        if entry is not None and now < entry.fresh_until:
            if now >= entry.refresh_at and digest not in self._flights:
                self._take_off(digest, credential, entry.source)
        else:
            entry = await self._look_up(digest, credential, call.client_address, entry, now)
            now = self._clock()
        if now >= entry.ends_at:
            raise self._refuse(call.client_address, "expired")
        if entry.verified.networks is not None:
            self._check_address(entry.verified.networks, call.client_address)
        entry.used = True
        return entry.verified.principal

    def forget(self, key_id: str) -> None:
        """Drop what is remembered of a key, because it changed."""
        for digest in [digest for digest, entry in self._entries.items() if entry.verified.principal.key_id == key_id]:
            del self._entries[digest]

    # --- the slow way

    async def _look_up(self, digest: bytes, credential: str, address: str, known: _Entry | None, now: float) -> _Entry:
        wait = 0.0
        source = self._source(credential) if known is None else known.source
        if source is None:
            raise self._refuse(address, "invalid", self._throttle.wait(address, now))
        if known is None:
            # A key that was valid a moment ago is looked up whatever its neighbours did.
            wait = self._throttle.wait(address, now)
            if self._refused.get(digest, -math.inf) > now:
                raise self._refuse(address, "invalid", wait)
            if wait > 0 and not self._throttle.probe(address, now):
                raise self._refuse(address, "unchecked", wait)
        elif now < source.away_until and now < known.stale_until:
            self.stale += 1
            return known
        others = self._flights.get(digest)
        try:
            entry = await asyncio.shield(others or self._take_off(digest, credential, source))
        except Unavailable:
            if known is not None and now < known.stale_until:
                self.stale += 1
                return known
            if known is None and others is None and source is self._token_source:
                # Anybody can write what looks like a token: asking in vain counts as a refusal does.
                self._throttle.refuse(address, now)
            raise
        if entry is None:
            raise self._refuse(address, "invalid", wait)
        return entry

    def _source(self, credential: str) -> _Source | None:
        """Whom to ask: about a key whose checksum holds, about something like a JWT; None: it is not worth asking."""
        if keyformat.parse(credential) is not None:
            return self._key_source
        return self._token_source if credential.startswith("eyJ") and credential.count(".") == 2 else None

    def _take_off(self, digest: bytes, credential: str, source: _Source) -> asyncio.Task[_Entry | None]:
        flight = asyncio.create_task(self._fly(digest, credential, source), name="key look-up")
        self._flights[digest] = flight

        def land(task: asyncio.Task[_Entry | None]) -> None:
            del self._flights[digest]
            if not task.cancelled():
                task.exception()  # whoever waits has it; nobody need wait

        flight.add_done_callback(land)
        return flight

    async def _fly(self, digest: bytes, credential: str, source: _Source) -> _Entry | None:
        async with source.slots:
            began = self._clock()  # the revocation bound counts from before the database was read
            self.lookups += 1
            try:
                async with timeout(LOOKUP_TIMEOUT_S):
                    verified = await source.verify(credential)
            except asyncio.TimeoutError:
                source.away_until = self._clock() + _OUTAGE_PAUSE_S
                raise Unavailable("Keys cannot be checked at the moment.", retry_after_s=2.0) from None
            except Unavailable:
                source.away_until = self._clock() + _OUTAGE_PAUSE_S
                raise
        if verified is None:
            self._entries.pop(digest, None)
            _remember(self._refused, digest, began + _NEGATIVE_TTL_S, self._size)
            return None
        ends_at = math.inf
        if verified.valid_until is not None:
            ends_at = began + verified.valid_until - self._wall_clock()
        entry = _Entry(
            verified,
            source,
            refresh_at=began + self._ttl / 2,
            fresh_until=began + self._ttl,
            stale_until=began + self._outage_ttl,
            ends_at=ends_at,
        )
        _remember(self._entries, digest, entry, self._size)
        return entry

    async def _verify_key(self, credential: str) -> Verified | None:
        presented = keyformat.parse(credential)
        found = None if presented is None else await self._keys.verify(presented)
        return None if found is None else _from_key(found)

    def _refuse(self, address: str, reason: str, wait: float = 0.0) -> Unauthenticated | RateLimited:
        """Count a refusal and make its answer: 401, or 429 while the address has to wait."""
        if wait > 0:
            self.throttled += 1
            self.note(address, "throttled")
            headers = self._throttle.headers(wait)
            wait = max(1.0, wait) * random.uniform(1.0, 1.25)  # noqa: S311 - jitter, not a secret
            return RateLimited("Too many invalid keys from this address.", retry_after_s=wait, headers=headers)
        self.refused += 1
        self._throttle.refuse(address, self._clock())
        self.note(address, reason)
        return unauthenticated()

    def note(self, address: str, reason: str) -> None:
        """Have a refusal written to the audit; ``reason`` is a fixed word, with a key's id at most."""
        if self._refusals is not None:
            self._refusals.note(address, reason)

    def _check_address(self, networks: tuple[_Network, ...], address: str) -> None:
        with contextlib.suppress(ValueError):
            client = ipaddress.ip_address(address.partition("%")[0])
            if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped is not None:
                client = client.ipv4_mapped
            if any(client in network for network in networks):
                return
        self.note(address, "address")
        raise Forbidden("The key may not be used from this address.")

    # --- the background task

    async def _flush_some(self) -> None:
        self._rounds += 1
        await self._flush(touch=self._rounds % _TOUCH_EVERY == 0, all_=False)

    async def _flush(self, *, touch: bool, all_: bool) -> None:
        try:
            if self._refusals is not None:
                await self._refusals.flush(self._clock(), all_=all_)
            if touch:
                await self._touch()
        except Unavailable as error:
            log.warning("access.flush_failed", error=error.code)

    async def _touch(self) -> None:
        now = self._wall_clock()
        for entry in self._entries.values():
            if entry.used:
                entry.used = False
                self._last_used[entry.verified.principal.key_id] = now
        used, self._last_used = self._last_used, {}
        try:
            await self._keys.touch(used)
        except Unavailable:
            self._last_used = used | self._last_used
            raise


def unauthenticated() -> Unauthenticated:
    """Make the one answer to a missing and to an invalid credential."""
    return Unauthenticated(
        "A valid API key is required.", headers={"WWW-Authenticate": 'Bearer realm="tidegate", charset="UTF-8"'}
    )


def _from_key(found: VerifiedKey) -> Verified:
    addresses = found.key.addresses
    networks = None if addresses is None else tuple(ipaddress.ip_network(address) for address in addresses)
    return Verified(found.key.principal(), found.valid_until, networks)


def _remember(cache: OrderedDict[bytes, _Value], digest: bytes, value: _Value, size: int) -> None:
    cache[digest] = value
    cache.move_to_end(digest)
    while len(cache) > size:
        cache.popitem(last=False)
