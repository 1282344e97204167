"""Idempotency keys: a request that is sent again under the same key is answered again, not executed again.

A key is reserved in the shared store before the work begins, so that it holds over all gateways, and filled
with the answer before the answer leaves. Only answers (2xx) are kept: a refused or failed request was not
billed, gives its key back and may be tried again. A reservation whose gateway died is never executed a second
time: whether the work was done is not known, and the caller is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from gateway.background import Background
from gateway.errors import (
    AnswerLost,
    Forbidden,
    GatewayError,
    InProgress,
    KeyReused,
    Malformed,
    Unauthenticated,
    Unavailable,
)
from gateway.redaction import holds_key
from gateway.settings import Settings
from gateway.store import idempotency as statements
from gateway.store.database import Store
from gateway.store.idempotency import Reserved, Slot
from gateway.types import Call

log = structlog.get_logger(__name__)

MAX_KEY_CHARS = 255
REPLAYED = "Idempotent-Replayed"

_LEASE_MARGIN_S = 60.0
_PURGE_EVERY_S = 60.0
_PURGE_ROWS = 1000
_TICK_S = 1.0
_LONG_BYTES = 2**20
"""From here on a digest is made in a thread."""
_STORE_ERRORS = (Unavailable, SQLAlchemyError, OSError)
_OUTCOMES = ("executed", "replayed", "in_progress", "reused", "lost", "released", "not_kept")


@dataclass(slots=True)
class Answer:
    """What a request was answered with, on whatever transport."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str | None = None


class Idempotency:
    """The keys of one gateway's calls. Between ``start`` and ``stop`` old keys are purged in the background."""

    def __init__(self, store: Store, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self.outcomes = dict.fromkeys(_OUTCOMES, 0)
        """Requests with a key, by what became of them."""
        self.stored_bytes = 0
        """Answers kept in the store, of all gateways, when it was last purged; this one's since."""
        self._owed: dict[Slot, str] = {}
        """Keys that could not be given back, and the calls that had them."""
        self._background = Background()
        self._next_purge = 0.0

    async def start(self) -> None:
        """Begin to purge."""
        self._background.every(_TICK_S, self._tidy, "idempotency keys")

    async def stop(self) -> None:
        """End it, and give back what is owed."""
        await self._background.stop()
        with contextlib.suppress(*_STORE_ERRORS):
            await self._pay()

    async def once(
        self,
        call: Call,
        asked: Sequence[bytes],
        work: Callable[[], Awaitable[Answer]],
        close: Callable[[Call], Awaitable[None]],
    ) -> Answer:
        """Do ``work`` and ``close`` the call, or answer as before. Raises what :meth:`begin` and both of them raise.

        The answer is kept before the call is recorded as completed: whatever dies in between, nobody pays for an
        answer that cannot be had.
        """
        begin = time.monotonic_ns()
        before = await self.begin(call, asked)
        call.stages["idempotency"] = time.monotonic_ns() - begin
        if before is not None:
            return before
        try:
            answer = await work()
            call.bytes_out = len(answer.body)
            begin = time.monotonic_ns()
            await self.keep(call, answer)
            call.stages["idempotency"] += time.monotonic_ns() - begin
        except BaseException:
            await asyncio.shield(self.release(call))
            raise
        try:
            await close(call)
        except GatewayError:  # what cannot be recorded is not answered, now or later
            await self.release(call)
            raise
        return answer

    # --- its three steps

    async def begin(self, call: Call, asked: Sequence[bytes]) -> Answer | None:
        """The answer that was given under the call's key before; without one ``call.reserve_key`` is set.

        ``asked`` is everything that makes the request what it is. Raises ``Malformed`` (no such key can
        be), ``KeyReused`` (another request had it), ``InProgress``, ``AnswerLost``, ``Forbidden`` (the key's
        answer is of a model that the caller may not use) and ``Unavailable``. Nothing is written yet.
        """
        slot, digest = _slot(call), await _digest(asked)
        now = int(self._clock() * 1e6)
        async with self._store.read() as connection:
            row = await statements.find(connection, slot)
            state = None
            if row is not None and row.status == 0:
                state = await statements.usage_state(connection, row.usage_id)
        instead_of = None
        if row is not None and row.expires_at > now:
            # Ended without an answer, and its key could not be given back then: it is free.
            if row.status == 0 and state in {"failed", "client_closed"}:
                instead_of = row.usage_id
            else:
                return self._again(call, row, state, digest, now)
        call.reserve_key = partial(self._reserve, call, slot, digest, instead_of)
        return None

    async def _reserve(self, call: Call, slot: Slot, digest: str, instead_of: str | None) -> None:
        """Take the key. Raises ``InProgress`` (another was faster by a moment) and ``Unavailable``."""
        now = int(self._clock() * 1e6)
        lease_s, keep_s = self._settings.max_timeout_s + _LEASE_MARGIN_S, self._settings.idempotency_keep_s
        wanted = Reserved(slot, call.usage_id, digest, now, now + int(lease_s * 1e6), now + int(keep_s * 1e6))
        call.idempotent = True
        try:
            async with self._store.write() as connection:
                taken = await statements.take(connection, self._store.kind, wanted, now, instead_of=instead_of)
        except BaseException:  # whether it was committed is not known
            await asyncio.shield(self.release(call))
            raise
        if not taken:
            call.idempotent = False
            self._count("in_progress")
            raise _in_progress()

    async def keep(self, call: Call, answer: Answer) -> None:
        """Store what the call is about to be answered with; anything but 2xx gives the key back instead.

        A call that executed nothing reserved nothing, and leaves nothing.

        An answer that is too large, or one that the store does not take, is given all the same: the same
        request gets ``AnswerLost`` then, and is not executed again.
        """
        if not call.idempotent:
            return
        if not 200 <= answer.status < 300:
            await self.release(call)
            return
        settings = self._settings
        size = len(answer.body)
        kept = (
            size <= settings.idempotency_max_body_bytes
            and self.stored_bytes + size <= settings.idempotency_max_stored_bytes
        )
        try:
            async with self._store.write() as connection:
                found = await statements.fill(
                    connection, _slot(call), call.usage_id,
                    model=call.model, status=answer.status, media_type=answer.media_type,
                    headers=msgspec.json.encode(answer.headers).decode(), body=answer.body if kept else None,
                )  # fmt: skip
            kept = kept and found
        except _STORE_ERRORS as error:
            kept = False
            log.warning("idempotency.not_kept", usage_id=call.usage_id, error=type(error).__name__)
        self._count("executed")
        if kept:
            self.stored_bytes += size
        else:
            self._count("not_kept")

    async def release(self, call: Call) -> None:
        """Give the call's key back, if it has it: it was not answered."""
        if not call.idempotent:
            return
        call.idempotent = False
        self._count("released")
        slot = _slot(call)
        self._owed[slot] = call.usage_id
        with contextlib.suppress(*_STORE_ERRORS):  # tried again until it succeeds
            await self._give_back(slot, call.usage_id)

    # --- the second time

    def _again(self, call: Call, row: sa.Row[Any], state: str | None, digest: str, now: int) -> Answer:
        if row.digest != digest:
            self._count("reused")
            raise KeyReused("another request was sent with this idempotency key", param="Idempotency-Key")
        principal = call.principal
        if row.model and not (principal is not None and principal.may_use(row.model)):
            raise Forbidden("this key may not use that model", param="model")
        if row.status == 0:
            if now < row.lease_until and state in {None, "reserved"}:
                self._count("in_progress")
                raise _in_progress()
            self._count("lost")
            raise _lost("an earlier request with this idempotency key may have been executed; its answer is lost")
        if row.body is None:
            self._count("lost")
            raise _lost("the request with this idempotency key was answered; the answer was too large to be kept")
        self._count("replayed")
        call.usage_id, call.model = row.usage_id, row.model
        headers = msgspec.json.decode(row.headers, type=dict[str, str])
        return Answer(row.status, bytes(row.body), {**headers, REPLAYED: "true"}, row.media_type)

    # --- in the background

    async def _tidy(self) -> None:
        try:
            await self._pay()
            if time.monotonic() >= self._next_purge:
                await self.purge()
                self._next_purge = time.monotonic() + _PURGE_EVERY_S
        except _STORE_ERRORS as error:
            log.warning("idempotency.not_tidied", error=type(error).__name__)

    async def purge(self) -> int:
        """Delete what has expired, a batch at a time, and measure the rest; how many rows went."""
        total, now = 0, int(self._clock() * 1e6)
        while True:
            async with self._store.write() as connection:
                gone = await statements.purge(connection, now, _PURGE_ROWS)
            total += gone
            if gone < _PURGE_ROWS:
                break
        async with self._store.read() as connection:
            self.stored_bytes = await statements.stored_bytes(connection)
        return total

    async def _pay(self) -> None:
        for slot, usage_id in list(self._owed.items()):
            await self._give_back(slot, usage_id)

    async def _give_back(self, slot: Slot, usage_id: str) -> None:
        async with self._store.write() as connection:
            await statements.drop(connection, slot, usage_id)
        if self._owed.get(slot) == usage_id:
            del self._owed[slot]

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] += 1


def _slot(call: Call) -> Slot:
    principal, key = call.principal, call.idempotency_key
    if principal is None:
        raise Unauthenticated("a key is required")
    if key is None or not key.strip() or len(key) > MAX_KEY_CHARS:
        raise Malformed(f"Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters", param="Idempotency-Key")
    if holds_key(key):
        raise Malformed("Idempotency-Key must not hold an API key", param="Idempotency-Key")
    if not (key.isascii() and key.isprintable()):
        raise Malformed("Idempotency-Key must be of printable ASCII characters", param="Idempotency-Key")
    return Slot(principal.project, principal.test, key)


async def _digest(asked: Sequence[bytes]) -> str:
    if sum(map(len, asked)) > _LONG_BYTES:
        return await asyncio.to_thread(_sha256, asked)
    return _sha256(asked)


def _sha256(asked: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for part in asked:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _in_progress() -> InProgress:
    return InProgress("a request with this idempotency key is in progress", retry_after_s=1.0)


def _lost(message: str) -> AnswerLost:
    # Clients that repeat every 409 are told that it will not help.
    return AnswerLost(f"{message}; use a new key to execute it again", headers={"X-Should-Retry": "false"})
