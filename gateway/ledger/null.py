"""The ledger that writes nothing, for measuring what the other one costs (``metering`` off)."""

from __future__ import annotations

from gateway.ledger.counters import Counters
from gateway.ledger.record import End
from gateway.types import Call, Units


class NullLedger:
    """Stands where a :class:`~gateway.ledger.ledger.Ledger` stands, and only counts."""

    enabled = False
    metered = unknown = rejected = damaged = dropped = unsettled = 0
    journal_bytes = journal_failures = spooled_bytes = 0
    available = True

    def __init__(self) -> None:
        self.gateway_id = "unmetered"
        self.counters = Counters()
        self._inflight: set[str] = set()

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def reserve(self, call: Call) -> None:
        """Count the call."""
        self.counters.accepted += 1
        self._inflight.add(call.usage_id)

    async def finish(
        self,
        call: Call,
        state: End,
        status: int,  # noqa: ARG002
        error: str | None = None,  # noqa: ARG002
        *,
        delivered: bool = False,  # noqa: ARG002
    ) -> None:
        """Count how the call ended."""
        if call.usage_id not in self._inflight:
            return
        self._inflight.remove(call.usage_id)
        counters = self.counters
        counters.completed += state == "completed"
        counters.failed += state == "failed"
        counters.client_closed += state == "client_closed"

    def estimate(self, model: str, units: Units, elapsed_ns: int = 0) -> tuple[int, float]:  # noqa: ARG002
        """Nothing is measured: 0 and 0."""
        return 0, 0.0

    async def flush(self) -> None:
        """Nothing to write."""

    @property
    def inflight(self) -> int:
        """Calls begun and not ended."""
        return len(self._inflight)

    @property
    def imbalance(self) -> dict[str, int]:
        """No books, no imbalance."""
        return {}

    @property
    def consistent(self) -> bool:
        """Whether every call accepted is accounted for."""
        counters = self.counters
        return counters.accepted == counters.completed + counters.failed + counters.client_closed + self.inflight

    @property
    def compared(self) -> dict[str, bool]:
        """No books, nothing to compare."""
        return {}
