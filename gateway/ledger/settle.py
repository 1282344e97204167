"""Cost by measured work: Triton's compute time, split over the calls that used it.

Triton counts per model, not per request. So its counters are read at intervals, and what they grew
by is split over the calls completed since, by the work that each brought (tokens with padding,
pixels, or rows). A call that Triton has not counted yet waits for the next reading; time that no
call of this gateway claims within a few readings belongs to another client and is dropped, so with
several gateways on one Triton each settles its own share. After a restart of Triton its counters
begin again at 0.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from gateway.ledger.balance import Balance
from gateway.ledger.prices import Prices
from gateway.store.usage import Settlement, UsageRecord
from gateway.triton.statistics import ModelStatistics
from gateway.types import Units

Kind = Literal["tokens", "pixels", "rows"]

_HALF_LIFE_S = 60.0
_PATIENCE = 10
"""Readings that a completed call waits for Triton to count it, before its cost is estimated."""
_CLAIM = 5
"""Readings after which unclaimed time belongs to somebody else."""


_GONE = 60
"""Readings without a server, after which it is forgotten."""


@dataclass(slots=True)
class _Growth:
    """What the counters of a model grew by at one reading, less what has been claimed of it."""

    reading: int
    rows: int = 0
    cache_hits: int = 0
    compute_ns: int = 0
    queue_ns: int = 0

    def claim(self, rows: int) -> _Growth:
        """Take the share of ``rows`` (at most all) out."""
        part = _Growth(self.reading, rows)
        for name in ("cache_hits", "compute_ns", "queue_ns"):
            share = getattr(self, name) * rows // self.rows
            setattr(part, name, share)
            setattr(self, name, getattr(self, name) - share)
        self.rows -= rows
        return part


class _Rate:
    """Compute nanoseconds per unit of work, older observations counting half every ``_HALF_LIFE_S``."""

    def __init__(self) -> None:
        self._compute_ns = 0.0
        self._work = 0.0
        self._at = 0.0

    def observe(self, compute_ns: int, work: int, now: float) -> None:
        decay = 0.5 ** ((now - self._at) / _HALF_LIFE_S) if self._work else 0.0
        self._compute_ns = self._compute_ns * decay + compute_ns
        self._work = self._work * decay + work
        self._at = now

    def __call__(self, work: int) -> float:
        return self._compute_ns / self._work * work if self._work else 0.0


class _Model:
    """The open accounts of one model."""

    def __init__(self) -> None:
        self.pending: deque[tuple[int, UsageRecord]] = deque()
        self.growth: deque[_Growth] = deque()
        self.rates: dict[Kind, _Rate] = {}


class Settler:
    """Settles the cost of completed records, each once, and estimates that of calls to come."""

    def __init__(self, prices: Prices, max_batch: Callable[[str], int] = lambda _model: 1) -> None:
        """``max_batch`` tells the largest batch of a model."""
        self.balance = Balance(max_batch)
        self.complete = False
        """Whether the last reading had the counters of every server known."""
        self.unclaimed: dict[str, int] = {}
        """Rows by model that Triton inferred for somebody else, or for calls that did not complete."""
        self.cost_pico_usd: dict[str, int] = defaultdict(int)
        """Settled compute cost by model."""
        self.billed_pico_usd: dict[str, int] = defaultdict(int)
        self._prices = prices
        self._models: dict[str, _Model] = {}
        self._totals: dict[tuple[str, str, str], ModelStatistics] = {}
        self._servers: dict[str, int] = {}
        """Reading at which each was last seen."""
        self._reading = 0

    @property
    def pending(self) -> int:
        """Completed records whose cost is open."""
        return sum(len(model.pending) for model in self._models.values())

    def completed(self, record: UsageRecord) -> None:
        """Take a completed record; its cost follows from a later :meth:`observe`."""
        model = self._models.get(record.model)
        if model is None:
            model = self._models[record.model] = _Model()
        model.pending.append((self._reading, record))

    def left(self, record: UsageRecord) -> None:
        """Take a record whose client closed; what it owes (for a part that was delivered) is final."""
        self.cost_pico_usd[record.model] += record.cost_pico_usd
        self.billed_pico_usd[record.model] += record.billed_pico_usd

    def estimate(self, model: str, units: Units, elapsed_ns: int = 0) -> tuple[int, int]:
        """Compute time (ns) and bill (10⁻¹² USD) to expect.

        ``elapsed_ns``, unless 0, is how long the call's inferences took: no more than that, and that where the model
        was never measured.
        """
        expected = round(self._expected(model, units.tokens, units.pixels, units.rows))
        compute_ns = min(expected, elapsed_ns) if expected and elapsed_ns else expected or elapsed_ns
        cost = self._prices.cost(model, compute_ns)
        billed = self._prices.billed(model, tokens=units.tokens, pixels=units.pixels, rows=units.rows, cost=cost)
        return compute_ns, billed

    def estimated(self, record: UsageRecord) -> Settlement:
        """The settlement of a record whose compute time nobody measured."""
        compute_ns = record.compute_ns or round(self._expected(record.model, record.tokens, record.pixels, record.rows))
        return self._settlement(record, compute_ns, 0, 0, "estimate")

    def observe(self, statistics: Iterable[ModelStatistics] | None, now: float) -> list[Settlement]:
        """Take a reading of Triton's counters; returns what it settles.

        ``now`` is monotonic, in seconds. None stands for a reading that failed: nothing is counted,
        and who has waited long enough is settled by estimate.
        """
        self._reading += 1
        self.complete = statistics is not None and self._grow(statistics, now)
        if self.complete:
            self.balance.close()
        settlements: list[Settlement] = []
        for name, model in self._models.items():
            settlements += self._settle(model, now)
            self._expire(name, model)
        return settlements

    def give_up(self) -> list[Settlement]:
        """Settle all that is pending by estimate: there will be no further reading."""
        settlements = []
        for model in self._models.values():
            settlements += [self._book(record, self.estimated(record)) for _, record in model.pending]
            model.pending.clear()
        return settlements

    # --- Triton's counters

    def _grow(self, statistics: Iterable[ModelStatistics], now: float) -> bool:
        """Add what the counters grew by; returns whether all servers known were read."""
        seen, read = set(), set()
        for entry in statistics:
            seen.add(entry.server)
            key = (entry.server, entry.model, entry.version)
            read.add(key)
            before, self._totals[key] = self._totals.get(key), entry
            model = self._models.setdefault(entry.model, _Model())
            if before is None and entry.server not in self._servers:
                # A server met for the first time: what it did so far was for others, but tells the pace.
                self._observe_rate(model, "rows", entry.compute_ns, entry.inference_count, now)
                self.balance.restart(entry.model)
                continue
            restarted = before is not None and _restarted(before, entry)
            growth = self._growth(None if restarted else before, entry)
            if growth.rows:
                model.growth.append(growth)
            if restarted:
                self.balance.restart(entry.model)
            else:
                self.balance.count(entry.model, growth.rows - growth.cache_hits, growth.cache_hits)
        for key in [key for key in self._totals if key[0] in seen and key not in read]:
            self.balance.restart(key[1])  # unloaded: what it did since the last reading is lost
            del self._totals[key]
        for server in seen:
            self._servers[server] = self._reading
        self._forget_servers()
        return seen == self._servers.keys()

    def _growth(self, before: ModelStatistics | None, entry: ModelStatistics) -> _Growth:
        growth = _Growth(
            self._reading,
            rows=entry.inference_count - (before.inference_count if before else 0),
            cache_hits=entry.cache_hit_count - (before.cache_hit_count if before else 0),
            compute_ns=entry.compute_ns - (before.compute_ns if before else 0),
            queue_ns=entry.queue_ns - (before.queue_ns if before else 0),
        )
        growth.rows += growth.cache_hits
        return growth

    def _forget_servers(self) -> None:
        """Let go of servers that have been away for long: taken out of service."""
        for server, reading in list(self._servers.items()):
            if self._reading - reading > _GONE:
                del self._servers[server]
                for key in [key for key in self._totals if key[0] == server]:
                    self.balance.restart(key[1])
                    del self._totals[key]

    # --- splitting

    def _settle(self, model: _Model, now: float) -> list[Settlement]:
        available = sum(growth.rows for growth in model.growth)
        claimed: list[UsageRecord] = []
        rows = 0
        while model.pending and rows + model.pending[0][1].rows <= available:
            record = model.pending.popleft()[1]
            rows += record.rows
            claimed.append(record)
        settlements = self._split(model, claimed, rows, now) if claimed else []
        while model.pending and self._reading - model.pending[0][0] > _PATIENCE:
            record = model.pending.popleft()[1]
            settlements.append(self._book(record, self.estimated(record)))
        return settlements

    def _split(self, model: _Model, records: Sequence[UsageRecord], rows: int, now: float) -> list[Settlement]:
        """Split the time of ``rows`` rows over ``records`` by their work; the parts add up exactly."""
        compute_ns = queue_ns = cache_hits = 0
        while rows:
            growth = model.growth[0]
            part = growth.claim(min(rows, growth.rows))
            rows -= part.rows
            compute_ns, queue_ns = compute_ns + part.compute_ns, queue_ns + part.queue_ns
            cache_hits += part.cache_hits
            if not growth.rows:
                model.growth.popleft()
        kind = _kind(records)
        work = [getattr(record, kind) for record in records]
        self._observe_rate(model, kind, compute_ns, sum(work), now)
        if kind != "rows":
            self._observe_rate(model, "rows", compute_ns, sum(record.rows for record in records), now)
        shares = zip(
            records, _shares(compute_ns, work), _shares(queue_ns, work), _shares(cache_hits, work), strict=True
        )
        return [
            self._book(record, self._settlement(record, compute, queue, hits, "measured"))
            for record, compute, queue, hits in shares
        ]

    def _expire(self, name: str, model: _Model) -> None:
        while model.growth and self._reading - model.growth[0].reading >= _CLAIM:
            self.unclaimed[name] = self.unclaimed.get(name, 0) + model.growth.popleft().rows

    def _book(self, record: UsageRecord, settlement: Settlement) -> Settlement:
        self.cost_pico_usd[record.model] += settlement.cost_pico_usd
        self.billed_pico_usd[record.model] += settlement.billed_pico_usd
        return settlement

    def _settlement(
        self,
        record: UsageRecord,
        compute_ns: int,
        queue_ns: int,
        cache_hits: int,
        basis: Literal["estimate", "measured"],
    ) -> Settlement:
        cost = self._prices.cost(record.model, compute_ns)
        billed = self._prices.billed(
            record.model, tokens=record.tokens, pixels=record.pixels, rows=record.rows, cost=cost
        )
        return Settlement(
            usage_id=record.usage_id,
            queue_ns=queue_ns,
            compute_ns=compute_ns,
            cache_hits=cache_hits,
            cost_pico_usd=cost,
            billed_pico_usd=0 if record.test else billed,
            basis=basis,
            prices_version=self._prices.version,
        )

    # --- estimates

    def _observe_rate(self, model: _Model, kind: Kind, compute_ns: int, work: int, now: float) -> None:
        if work > 0:
            model.rates.setdefault(kind, _Rate()).observe(compute_ns, work, now)

    def _expected(self, name: str, tokens: int, pixels: int, rows: int) -> float:
        model = self._models.get(name)
        if model is None:
            return 0.0
        for kind, work in (("tokens", tokens), ("pixels", pixels)):
            if work and (rate := model.rates.get(kind)):  # type: ignore[call-overload]
                return float(rate(work))
        return model.rates["rows"](rows) if "rows" in model.rates else 0.0


def _restarted(before: ModelStatistics, after: ModelStatistics) -> bool:
    names = ("inference_count", "cache_hit_count", "compute_ns", "queue_ns")
    return any(getattr(after, name) < getattr(before, name) for name in names)


def _kind(records: Sequence[UsageRecord]) -> Kind:
    """What can be compared between these calls: what all of them brought."""
    if all(record.tokens for record in records):
        return "tokens"
    if all(record.pixels for record in records):
        return "pixels"
    return "rows"


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """Integers in proportion to ``weights`` that add up to ``total``."""
    whole = sum(weights)
    if not whole:
        return [total, *([0] * (len(weights) - 1))] if weights else []
    marks = [total * mark // whole for mark in accumulate(weights)]
    return [mark - before for before, mark in zip([0, *marks], marks, strict=False)]
