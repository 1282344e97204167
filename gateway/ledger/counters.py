"""What one gateway's ledger has seen."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """What the ledger has seen since it started; ``accepted == completed + failed + client_closed + inflight``."""

    accepted: int = 0
    completed: int = 0
    failed: int = 0
    client_closed: int = 0
    refused: int = 0
    """Calls turned away because they could not be recorded."""
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Of completed calls, by model."""
    pixels: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    cost_pico_usd: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Settled compute cost by model."""
    billed_pico_usd: dict[str, int] = field(default_factory=lambda: defaultdict(int))
