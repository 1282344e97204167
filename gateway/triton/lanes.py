"""What waits for one model: requests in lanes that may share a batch, tenants in turns, row by row.

A tenant's turn is virtual time: the rows that it has been served. It is the same in every lane, so that requests of
many shapes get no more turns than those of one.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

import msgspec

from gateway.triton.pace import Pace
from gateway.types import InferenceRequest, InferenceResult

LaneKey = tuple[object, ...]


class Waiting(msgspec.Struct, eq=False):
    """A request that waits for its batch."""

    request: InferenceRequest
    deadline_ns: int | None
    future: asyncio.Future[InferenceResult]
    tenant: str = ""
    place: tuple[Lane, Share] | None = None
    """Where it is counted; None once it is sent or given up."""

    @property
    def gone(self) -> bool:
        """Its client went away, or its deadline passed: no work is done for it."""
        return self.future.done()


@dataclass(slots=True, eq=False)
class Tenant:
    """Somebody with requests waiting; ``turn`` is the virtual time of its next one, in whatever lane."""

    name: str
    turn: float
    shares: int = 0


@dataclass(slots=True, eq=False)
class Share:
    """What one tenant has waiting in a lane."""

    tenant: Tenant
    rows: int = 0
    waiting: deque[Waiting] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Lane:
    """Requests that wait and may share a batch."""

    key: LaneKey
    max_rows: int
    pace: Pace
    rows: int = 0
    shares: dict[str, Share] = field(default_factory=dict)
    turns: list[tuple[float, int, Share]] = field(default_factory=list)
    """A heap of the shares by their tenants' turns, which may have moved on since; empty only when the lane is gone."""

    @property
    def head(self) -> tuple[float, int]:
        """When it is the turn of who is next here, and a number that tells ties apart."""
        while True:
            turn, order, share = self.turns[0]
            if turn >= share.tenant.turn:
                return turn, order
            heapq.heapreplace(self.turns, (share.tenant.turn, order, share))

    @property
    def rank(self) -> int:
        """Its place before lanes of other priorities: the first."""
        return rank_of(self.key)


class ModelQueue:
    """One model's lanes, and how many Triton requests it has in flight of the ``limit`` it may have."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = 1
        self.in_flight = 0
        self.waiting = 0
        """Requests in all lanes."""
        self.clock = 0.0
        """Virtual time: rows that everybody who waits has been served."""
        self.lanes: dict[LaneKey, Lane] = {}
        self.tenants: dict[str, Tenant] = {}
        self._order = itertools.count()

    def put(self, lane: Lane, entry: Waiting) -> None:
        """Let ``entry`` wait in ``lane``."""
        tenant = entry.tenant
        share = lane.shares.get(tenant)
        if share is None:
            who = self.tenants.get(tenant)
            if who is None:
                who = self.tenants[tenant] = Tenant(tenant, self.clock)
            who.shares += 1
            share = lane.shares[tenant] = Share(who)
            heapq.heappush(lane.turns, (who.turn, next(self._order), share))
        share.waiting.append(entry)
        share.rows += entry.request.rows
        lane.rows += entry.request.rows
        self.waiting += 1
        entry.place = (lane, share)

    def unqueue(self, entry: Waiting) -> None:
        """``entry`` waits no more, if it did; it leaves its share when its turn comes."""
        if entry.place is None:
            return
        lane, share = entry.place
        entry.place = None
        share.rows -= entry.request.rows
        lane.rows -= entry.request.rows
        self.waiting -= 1

    def take(self) -> tuple[Lane, list[Waiting]]:
        """The next batch and its lane; empty if all in it have gone. Raises ``ValueError`` where nobody waits.

        The lane of the highest priority, among those the one whose next tenant has been served the fewest rows.
        """
        lane = min(self.lanes.values(), key=lambda lane: (lane.rank, lane.head))
        batch = self._batch(lane)
        if not lane.turns:
            del self.lanes[lane.key]
        return lane, batch

    def _batch(self, lane: Lane) -> list[Waiting]:
        batch: list[Waiting] = []
        rows = 0
        while lane.turns:
            turn, _ = lane.head
            share = lane.turns[0][2]
            entry = share.waiting[0]
            if not entry.gone and batch and rows + entry.request.rows > lane.max_rows:
                break
            share.waiting.popleft()
            self.unqueue(entry)
            who = share.tenant
            if not entry.gone:
                batch.append(entry)
                rows += entry.request.rows
                self.clock = max(self.clock, turn)
                who.turn += entry.request.rows
            if not share.waiting:
                self._close(lane, share)
            elif who.turn > turn:
                heapq.heapreplace(lane.turns, (who.turn, next(self._order), share))
        return batch

    def _close(self, lane: Lane, share: Share) -> None:
        """The first of ``lane.turns`` has nothing waiting there any more."""
        heapq.heappop(lane.turns)
        who = share.tenant
        del lane.shares[who.name]
        who.shares -= 1
        if not who.shares:
            del self.tenants[who.name]


def rank_of(key: LaneKey) -> int:
    """Of a lane's priority: 1 is the highest, and what asks for none comes last."""
    priority = key[0]
    return priority if isinstance(priority, int) and priority else 2**32


def lane_key(request: InferenceRequest) -> LaneKey:
    """What requests must have in common to share a batch."""
    return (
        request.priority,
        request.model,
        request.version,
        request.outputs,
        _parameters_key(request) if request.parameters else (),
        tuple([(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in request.inputs]),
    )


def _parameters_key(request: InferenceRequest) -> tuple[object, ...]:
    """With types: 1, 1.0 and True are equal to Python, and not to a model."""
    return tuple(sorted((name, type(value).__name__, value) for name, value in request.parameters.items()))
