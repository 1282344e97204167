"""The ledger: every call recorded before it is forwarded and before it is answered, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
import uuid_utils
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import ClientClosed, GatewayError, Unavailable
from gateway.ledger import frames
from gateway.ledger.counters import Counters
from gateway.ledger.flusher import Flusher
from gateway.ledger.folders import create_folder, orphans
from gateway.ledger.journal import Journal
from gateway.ledger.prices import PICO, Prices
from gateway.ledger.record import End, end, reserved
from gateway.ledger.settle import Settler
from gateway.settings import Settings
from gateway.store import usage_totals
from gateway.store.database import Store
from gateway.store.usage import Settlement, UsageRecord
from gateway.store.usage_totals import RecordedRows
from gateway.timeouts import timeout
from gateway.triton.statistics import ModelStatistics
from gateway.types import Call, Units

log = structlog.get_logger(__name__)

_ORPHANS_EVERY_S = 30.0
_REAP_EVERY_S = 600.0
_REAP_MARGIN_S = 3600.0
_MAX_BACKOFF_S = 10.0
_STATISTICS_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 10.0
_SETTLEMENTS_PER_FRAME = 256
_DATABASE_ERRORS = (Unavailable, SQLAlchemyError, OSError)


class Ledger:
    """Usage records of one gateway process.

    ``statistics`` reads Triton's counters (``Pool.statistics``). Needs a running event loop from
    :meth:`start` to :meth:`stop`; between them two background tasks settle and write.
    """

    enabled = True

    def __init__(
        self,
        settings: Settings,
        store: Store,
        prices: Prices,
        statistics: Callable[[], Awaitable[Sequence[ModelStatistics]]],
        *,
        max_batch: Callable[[str], int] = lambda _model: 1,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``max_batch`` tells the largest batch of a model, ``clock`` the seconds since the epoch."""
        self.gateway_id = f"{_host()}-{uuid_utils.uuid7()}"
        self._settings = settings
        self._store = store
        self._statistics = statistics
        self._interval_s = interval_s
        self._clock = clock
        self._settler = Settler(prices, max_batch)
        self.counters = Counters(
            cost_pico_usd=self._settler.cost_pico_usd, billed_pico_usd=self._settler.billed_pico_usd
        )
        self._root = settings.data_dir / "journal"
        self._flusher = Flusher(store, self._root, self.gateway_id, self._settler.estimated)
        self._inflight: dict[str, UsageRecord] = {}
        self._owed: list[tuple[int, UsageRecord | list[Settlement]]] = []
        """Frames that the journal could not take, to be written once it can."""
        self._sync_each = settings.journal_sync_ms == 0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._settled = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._written = 0
        """Reading of Triton's counters before which everything accepted is in the database."""
        self._next_orphans = 0.0
        self._next_reap = time.monotonic() + _REAP_EVERY_S

    # --- life

    async def start(self) -> None:
        """Open the journal and begin to settle and write. Raises ``OSError`` if there can be no journal."""
        self._folder = create_folder(self._root, self.gateway_id)
        self._journal = Journal(
            self._folder.path,
            sync_s=self._settings.journal_sync_ms / 1000,
            max_bytes=self._settings.journal_max_bytes,
        )
        try:
            self._journal.open()
        except OSError:
            self._folder.close()
            raise
        await self._settle()
        self._tasks = [
            asyncio.create_task(self._settle_forever(), name="ledger settles"),
            asyncio.create_task(self._flush_forever(), name="ledger writes"),
        ]

    async def stop(self) -> None:
        """Settle and write what is there, sync the journal, and end the tasks.

        What the database does not take within seconds stays in the journal for the next start.
        """
        if not self._tasks:
            return
        self._stopping.set()
        self._settled.set()
        _, late = await asyncio.wait(self._tasks, timeout=_STOP_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._settle()
        self._record_settlements(self._settler.give_up())
        try:
            await self._journal.synced()
            async with timeout(_STOP_TIMEOUT_S):
                await self._finish_writing()
        except (*_DATABASE_ERRORS, asyncio.TimeoutError) as error:
            log.warning("ledger.left_in_journal", bytes=self.spooled_bytes, error=type(error).__name__)
            await self._close_journal()
            self._folder.close()
        else:
            await self._close_journal()
            self._folder.remove()

    # --- the two writes of every call

    async def reserve(self, call: Call) -> None:
        """Record that ``call`` is about to be forwarded.

        Raises :class:`Unavailable` if that cannot be made durable; the call must not be forwarded then.
        """
        record = reserved(call, self._clock())
        try:
            if self._journal.full or self._owed:
                raise Unavailable("Too much usage waits to be recorded.", retry_after_s=1.0)
            self._journal.append(frames.RECORD, record)
        except Unavailable:
            self.counters.refused += 1
            raise
        self.counters.accepted += 1
        self._inflight[call.usage_id] = record
        if self._sync_each:
            await self._reservation_synced(call)

    async def finish(
        self, call: Call, state: End, status: int, error: str | None = None, *, delivered: bool = False
    ) -> None:
        """Record how ``call`` ended, before it is answered; a call that is not in flight is left alone.

        ``delivered``: the client closed when a part of its answer had left already. It is billed by estimate.
        Raises :class:`Unavailable` if that cannot be made durable. The call must not be answered with
        its result then; it counts as failed and is not billed.
        """
        record = self._inflight.pop(call.usage_id, None)
        if record is None:
            return
        end(record, call, state, status, error)
        if state == "completed" or delivered:
            record.compute_ns = call.estimated_compute_ns
            self._settler.estimated(record).preview(record)
        taken = False
        try:
            self._journal.append(frames.RECORD, record)
            taken = True
            if self._sync_each:
                await self._journal.synced()
        except Unavailable:
            self._withhold(record, taken=taken)
            raise
        except asyncio.CancelledError:  # nobody waits for it any more; the journal has it, and makes it durable
            self._count(record)
            raise
        self._count(record)

    def estimate(self, model: str, units: Units, elapsed_ns: int = 0) -> tuple[int, float]:
        """Compute time in ns and bill in USD to expect for ``units``.

        ``elapsed_ns``, unless 0, is the time that the call's inferences took: the most that is expected, and what a
        model never measured is taken to compute.
        """
        compute_ns, billed = self._settler.estimate(model, units, elapsed_ns)
        return compute_ns, billed / PICO

    # --- for telemetry and readiness

    @property
    def inflight(self) -> int:
        """Calls reserved and not ended."""
        return len(self._inflight)

    @property
    def metered(self) -> int:
        """Ended records that are in the database, of this process and of dead ones that it replayed."""
        return self._flusher.metered

    @property
    def unknown(self) -> int:
        """Records of dead gateways that have no end."""
        return self._flusher.unknown

    @property
    def rejected(self) -> int:
        """Records that the database refused for their content, kept in a file."""
        return self._flusher.rejected

    @property
    def damaged(self) -> int:
        """Damaged stretches found in journals."""
        return self._flusher.damaged

    @property
    def dropped(self) -> int:
        """What was recorded and is not in the database for all that: rejected records, damaged stretches. 0, always."""
        return self.rejected + self.damaged

    @property
    def journal_failures(self) -> int:
        """Writes and syncs of the journal that failed."""
        return self._journal.failures

    @property
    def unsettled(self) -> int:
        """Completed calls whose cost is still open."""
        return self._settler.pending

    @property
    def journal_bytes(self) -> int:
        """Size of the journal."""
        return self._journal.bytes

    @property
    def spooled_bytes(self) -> int:
        """Bytes of the journal that are not in the database yet."""
        return self._flusher.spooled_bytes(self._journal)

    @property
    def imbalance(self) -> dict[str, int]:
        """Rows by model that Triton counted and no gateway recorded (positive), or the reverse; 0: they balance."""
        return self._settler.balance.imbalance

    @property
    def compared(self) -> dict[str, bool]:
        """Whether the books of a model are being compared at present."""
        return self._settler.balance.compared

    @property
    def available(self) -> bool:
        """Whether calls can be recorded: part of the gateway's readiness."""
        return bool(self._tasks) and not (self._journal.broken or self._journal.full or self._owed)

    @property
    def consistent(self) -> bool:
        """Whether every call accepted is accounted for: checked at every scrape."""
        counters = self.counters
        ended = counters.completed + counters.failed + counters.client_closed
        return counters.accepted == ended + self.inflight

    async def flush(self) -> None:
        """Write all that the journal holds now. Raises :class:`Unavailable` while the database is away."""
        async with self._flushing:
            reading = self._settler.balance.reading
            await self._flusher.flush(self._journal)
            self._written = reading

    # --- ends

    async def _reservation_synced(self, call: Call) -> None:
        """Wait until the reservation is durable; a call that is not forwarded after all ends here."""
        try:
            await self._journal.synced()
        except Unavailable as error:
            self.counters.refused += 1
            self._end_unforwarded(call, "failed", error)
            raise
        except asyncio.CancelledError:
            self._end_unforwarded(call, "client_closed", ClientClosed)
            raise

    def _end_unforwarded(self, call: Call, state: End, error: GatewayError | type[GatewayError]) -> None:
        record = self._inflight.pop(call.usage_id)
        end(record, call, state, error.status, error.code)
        self._count(record)
        self._owed.append((frames.RECORD, record))
        self._pay()

    def _count(self, record: UsageRecord) -> None:
        counters = self.counters
        if record.state == "completed":
            counters.completed += 1
            counters.tokens[record.model] += record.tokens
            counters.pixels[record.model] += record.pixels
            self._settler.completed(record)
        elif record.state == "failed":
            counters.failed += 1
        else:
            counters.client_closed += 1
            self._settler.left(record)

    def _withhold(self, record: UsageRecord, *, taken: bool) -> None:
        """Keep what is to be written of a call whose end is not durable, so that it is not answered.

        If the journal took the end, it will make it durable when it recovers: the record says
        ``completed`` then, and owes nothing.
        """
        if taken and record.state == "completed":
            void = Settlement(record.usage_id, 0, 0, 0, 0, 0, "none", record.prices_version)
            self._owed.append((frames.SETTLEMENTS, [void]))
        elif not taken:
            record.state, record.status, record.error = "failed", Unavailable.status, Unavailable.code
            record.compute_ns = record.cost_pico_usd = record.billed_pico_usd = 0
            record.basis, record.settled = "none", True
            self._owed.append((frames.RECORD, record))
        self.counters.completed += record.state == "completed"
        self.counters.failed += record.state == "failed"
        self.counters.client_closed += record.state == "client_closed"

    # --- in the background

    async def _settle_forever(self) -> None:
        while not await self._stopped(self._interval_s):
            try:
                self._pay()
                await self._settle()
                self._settled.set()
            except Exception:
                log.exception("ledger.settling_failed")

    async def _flush_forever(self) -> None:
        delay = self._interval_s
        while not await self._stopped(delay):
            # Right after a reading: most records are then written once, with their final cost.
            self._settled.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                async with timeout(self._interval_s):
                    await self._settled.wait()
            delay = self._interval_s / 2 if await self._flush_once() else min(max(delay, 0.5) * 2, _MAX_BACKOFF_S)

    async def _flush_once(self) -> bool:
        """Write what there is; False if the database or the disk does not let it."""
        now = time.monotonic()
        try:
            await self.flush()
            if now >= self._next_orphans:
                await self._adopt_orphans()
                self._next_orphans = now + _ORPHANS_EVERY_S
            if now >= self._next_reap:
                age_s = self._settings.max_timeout_s + _REAP_MARGIN_S
                await self._flusher.reap(int((self._clock() - age_s) * 1e6))
                self._next_reap = now + _REAP_EVERY_S
        except _DATABASE_ERRORS as error:
            self._settler.balance.interrupt()
            log.warning("ledger.spooling", bytes=self.spooled_bytes, error=type(error).__name__)
            return False
        except Exception:
            log.exception("ledger.writing_failed", bytes=self.spooled_bytes)
            return False
        return True

    async def _stopped(self, delay_s: float) -> bool:
        """Wait, at most ``delay_s``, for the order to stop."""
        try:
            async with timeout(delay_s):
                await self._stopping.wait()
        except asyncio.TimeoutError:
            return False
        return True

    async def _adopt_orphans(self) -> None:
        for folder in orphans(self._root):
            with contextlib.closing(folder):
                await self._flusher.adopt(folder)

    async def _settle(self) -> None:
        """One reading of Triton's counters, and what follows from it."""
        statistics: Sequence[ModelStatistics] | None
        try:
            async with timeout(_STATISTICS_TIMEOUT_S):
                statistics = await self._statistics()
        except (GatewayError, OSError, asyncio.TimeoutError) as error:
            statistics = None
            log.warning("ledger.no_statistics", error=type(error).__name__)
        self._record_settlements(self._settler.observe(statistics, time.monotonic()))
        if self._settler.complete:
            await self._compare()

    async def _compare(self) -> None:
        """Compare Triton's counts, just read, with what the database has of all gateways."""
        written = self._written
        try:
            async with timeout(_STATISTICS_TIMEOUT_S):
                recorded = await self._recorded()
        except (*_DATABASE_ERRORS, asyncio.TimeoutError):
            self._settler.balance.interrupt()
            return
        self._settler.balance.check(recorded, written)

    async def _recorded(self) -> dict[str, RecordedRows]:
        async with self._store.read() as connection:
            return await usage_totals.recorded(connection)

    def _record_settlements(self, settlements: Sequence[Settlement]) -> None:
        for start in range(0, len(settlements), _SETTLEMENTS_PER_FRAME):
            self._owed.append((frames.SETTLEMENTS, list(settlements[start : start + _SETTLEMENTS_PER_FRAME])))
        self._pay()

    def _pay(self) -> None:
        """Write the frames that are owed, as far as the journal takes them."""
        try:
            while self._owed:
                self._journal.append(*self._owed[0])
                del self._owed[0]
        except Unavailable:
            log.warning("ledger.owed", frames=len(self._owed))

    async def _finish_writing(self) -> None:
        await self.flush()
        await self._flusher.close_open(self.gateway_id)

    async def _close_journal(self) -> None:
        try:
            await self._journal.close()
        except Unavailable:
            log.error("ledger.journal_not_synced")


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:24] or "gateway"
