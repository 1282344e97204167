"""The books: what all gateways recorded for a model must equal what Triton inferred and answered from its cache.

Triton counts for all its clients together, so its counters are compared with the database, where the records
of every gateway end up, those of a killed one included once its journal is replayed. Both are read once a
second, never at one instant, and neither is complete at any: Triton counts after it has answered, a record is
written within seconds, and a call that failed may have been executed or not. So each reading gives two bounds
of the *offset*, Triton's count less the rows of executed calls, which never changes while the books balance:

* at most: what Triton has counted by now, less the rows of calls recorded as completed a reading ago;
* at least: what it had counted ``LAG`` readings ago, less the rows of all calls recorded by now.

Bounds of all readings together must leave room for one number. If they do not, the difference is the
imbalance. It is taken back when the missing records or counts arrive after all. When nothing has moved for a
while, the offset is known exactly and the account begins anew, so that calls that failed blur nothing for long.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from gateway.store.usage_totals import RecordedRows

log = structlog.get_logger(__name__)

LAG = 10
"""Readings within which every gateway that lives has written what it accepted."""
_LATE = 60
"""Readings within which Triton may still count a row of a call that had ended without an answer."""
_NOTHING = RecordedRows()


@dataclass(slots=True)
class _Account:
    """Rows of one model since the account began anew."""

    least: int = 0
    """Counted by Triton, a request answered from its cache taken for one row."""
    most: int = 0
    """The same, such a request taken for a full batch: Triton counts requests there, not rows."""
    history: deque[tuple[int, int]] = field(default_factory=deque)
    """Readings not older than ``LAG``, with ``least`` at each."""
    begin: RecordedRows | None = None
    """What was recorded when the account began."""
    opens_at: int = 0
    """Reading from which Triton's counts are taken: by then those of earlier calls are in, of failed ones, too."""
    last: RecordedRows = _NOTHING
    low: float = -math.inf
    """The offset is at least this, and at most ``high``."""
    high: float = math.inf
    carried: int = 0
    """Imbalance when the account began."""
    raw: int = 0
    """Imbalance, calls of lost gateways left aside."""
    imbalance: int = 0
    still_for: int = 0
    """Readings without any change."""
    late: int = 0
    """Rows of failed calls of earlier accounts, not counted by Triton so far; it may still do so."""
    late_for: int = 0

    def restart(self) -> None:
        """Rows may have been executed and lost from the counters: the offset fell by nobody knows how much."""
        self.low = -math.inf
        self.history.clear()
        self.still_for = 0

    def close(self, reading: int) -> None:
        """End a reading of Triton's counters."""
        if self.begin is None or reading <= self.opens_at:
            self.least = self.most = 0
            self.history.clear()
        self.history.append((reading, self.least))
        while len(self.history) > 1 and self.history[1][0] <= reading - LAG:
            self.history.popleft()

    @property
    def compared(self) -> bool:
        """Whether there are bounds on both sides."""
        return self.low > -math.inf and self.high < math.inf

    def compare(self, recorded: RecordedRows, reading: int, judge_until: int) -> None:
        """Set ``imbalance`` by the counts read until ``judge_until`` and what was recorded after them."""
        if self.begin is None:
            self.begin = self.last = recorded
            self.opens_at = reading + LAG
        if reading <= self.opens_at:
            self.last = recorded
            return
        before, self.last = self.last, recorded
        upper = self.most - (before.completed - self.begin.completed)
        lower = -math.inf
        for number, counted in self.history:
            if number <= judge_until:
                lower = counted - (recorded.accepted - self.begin.ended) - self.late
        shift = _clamp(self.raw - self.carried, lower - self.high, upper - self.low)
        self.raw = self.imbalance = self.carried + shift
        if self.raw > 0:
            # Calls of a gateway that was lost turn up without an end: they explain what they can.
            proven = _clamp(0, self.carried + lower - self.high, math.inf)
            self.imbalance = max(proven, self.raw - (recorded.unknown - self.begin.unknown), 0)
        self.low, self.high = max(self.low, lower - shift), min(self.high, upper - shift)
        self.still_for = self.still_for + 1 if recorded == before and not recorded.reserved else 0
        self.late_for += 1

    def begin_anew(self) -> None:
        """Nothing has moved for so long that all is written and counted: the offset is known exactly."""
        begin = self.begin or self.last
        if self.late_for > _LATE:
            self.late = 0
        uncounted = self.last.ended - begin.ended - self.least
        given_up = self.last.ended - self.last.completed - (begin.ended - begin.completed)
        if uncounted > 0 and given_up > 0:
            self.late, self.late_for = self.late + min(uncounted, given_up), 0
        elif uncounted < 0:
            self.late = max(0, self.late + uncounted)
        self.least = self.most = 0
        self.history = deque((reading, 0) for reading, _ in list(self.history)[-1:])
        self.begin = self.last
        self.low = self.high = 0.0
        self.carried = self.raw = self.imbalance
        self.still_for = 0


class Balance:
    """Compares, model by model, continuously.

    A reading is any number of :meth:`count` and :meth:`restart`, then :meth:`close`, then :meth:`check` with
    what the database showed after it. ``max_batch`` tells the largest batch of a model.
    """

    def __init__(self, max_batch: Callable[[str], int] = lambda _model: 1) -> None:
        self.reading = 0
        """Complete readings so far."""
        self._max_batch = max_batch
        self._accounts: dict[str, _Account] = {}
        self._trusted_from = 0
        """Reading from which on other gateways are taken to have written what they had to."""
        self._checked = 0
        """Reading of the last check."""

    @property
    def imbalance(self) -> dict[str, int]:
        """Rows by model: positive, Triton inferred what no gateway has recorded (another client, or a gateway
        that is gone and whose journal nobody has replayed); negative, what is billed Triton never counted.
        """
        return {model: account.imbalance for model, account in self._accounts.items()}

    @property
    def compared(self) -> dict[str, bool]:
        """Whether the books of a model are being compared at present: not before a few readings, and not while
        the database or a Triton cannot be read.
        """
        current = self.reading - self._checked <= 1 and self.reading >= self._trusted_from
        return {model: current and account.compared for model, account in self._accounts.items()}

    def restart(self, model: str) -> None:
        """Triton's counters of ``model`` began anew: what they lost cannot be compared."""
        self._account(model).restart()

    def count(self, model: str, rows: int, cache_hits: int = 0) -> None:
        """Triton inferred ``rows`` more rows and answered ``cache_hits`` more requests from its cache."""
        account = self._account(model)
        account.least += rows + cache_hits
        account.most += rows + cache_hits * max(1, self._max_batch(model))
        if rows or cache_hits:
            account.still_for = 0

    def close(self) -> None:
        """End a reading of all servers' counters."""
        self.reading += 1
        for account in self._accounts.values():
            account.close(self.reading)

    def interrupt(self) -> None:
        """The database could not be read or written: gateways have to catch up before they are judged."""
        self._trusted_from = self.reading + 2 * LAG

    def check(self, recorded: Mapping[str, RecordedRows], written_until: int) -> None:
        """Judge by what the database showed after the last reading.

        ``written_until``: reading at which everything that this gateway had accepted was in the database.
        """
        self._checked = self.reading
        judge_until = min(self.reading - LAG, written_until)
        if self.reading < self._trusted_from:
            judge_until = -1
        for model, account in self._accounts.items():
            before = account.imbalance
            account.compare(recorded.get(model, _NOTHING), self.reading, judge_until)
            if account.imbalance not in (before, 0):
                log.error("ledger.imbalance", model=model, rows=account.imbalance)
            if account.still_for > 2 * LAG and judge_until > 0:
                account.begin_anew()

    def _account(self, model: str) -> _Account:
        account = self._accounts.get(model)
        if account is None:
            account = self._accounts[model] = _Account()
        return account


def _clamp(value: int, low: float, high: float) -> int:
    """``value``, moved between the bounds if it is not; the upper one is the later one, and counts."""
    return int(min(max(value, low), high))
