"""What the ledger's tests share: calls, settings, a Triton that only counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uuid_utils
from sqlalchemy import text

from gateway.ledger.ledger import Ledger
from gateway.ledger.prices import PriceList, Prices
from gateway.ledger.record import End
from gateway.settings import Settings
from gateway.store.database import Store
from gateway.store.usage import UsageRecord
from gateway.triton.statistics import ModelStatistics
from gateway.types import Call, Principal, Units

PER_HOUR = 0.36
"""USD; a compute second costs 10⁻⁴ USD, a compute nanosecond 0.1 pico-USD."""


def make_prices(**models: dict[str, Any]) -> Prices:
    hardware = {"default": {"name": "test bench", "source": "made up", "per_hour": PER_HOUR}}
    return Prices(
        PriceList.model_validate(
            {"version": "test", "date": "2026-01-01", "currency": "USD", "hardware": hardware, "models": models}
        )
    )


def make_settings(folder: Path, **values: Any) -> Settings:
    return Settings(data_dir=folder, **values)


def make_principal(project: str = "project", key_id: str = "key", *, test: bool = False) -> Principal:
    return Principal(key_id, project, "organisation", frozenset({"infer"}), test=test)


def make_call(model: str = "sentiment", *, principal: Principal | None = None, **units: int) -> Call:
    usage_id = str(uuid_utils.uuid7())
    return Call(
        usage_id,
        f"request-{usage_id[-4:]}",
        "huggingface",
        "text-classification",
        principal=principal or make_principal(),
        model=model,
        units=Units(**({"rows": 1} | units)),
        bytes_in=100,
        bytes_out=200,
    )


def make_record(**values: Any) -> UsageRecord:
    defaults: dict[str, Any] = {
        "usage_id": str(uuid_utils.uuid7()),
        "state": "completed",
        "organisation": "organisation",
        "project": "project",
        "key_id": "key",
        "test": False,
        "dialect": "huggingface",
        "operation": "text-classification",
        "model": "sentiment",
        "request_id": "request",
        "idempotency_key": None,
        "received_at": time.time_ns() // 1000,
        "status": 200,
        "rows": 1,
        "gateway_id": "gateway",
    }
    return UsageRecord(**(defaults | values))


class CountingTriton:
    """The counters of a Triton that infers whatever it is told to, and can be restarted."""

    def __init__(self, server: str = "triton") -> None:
        self.server = server
        self.models: dict[str, dict[str, int]] = {}

    def infer(self, model: str, rows: int, compute_ns: int = 1_000_000, queue_ns: int = 0, cache_hits: int = 0) -> None:
        """``rows`` rows inferred and ``cache_hits`` more answered from the cache."""
        counters = self.models.setdefault(
            model, {"inference_count": 0, "cache_hit_count": 0, "compute_infer_ns": 0, "queue_ns": 0}
        )
        counters["inference_count"] += rows
        counters["cache_hit_count"] += cache_hits
        counters["compute_infer_ns"] += compute_ns
        counters["queue_ns"] += queue_ns

    def restart(self) -> None:
        self.models = {name: dict.fromkeys(counters, 0) for name, counters in self.models.items()}

    def read(self) -> list[ModelStatistics]:
        return [
            ModelStatistics(
                server=self.server,
                model=name,
                version="1",
                execution_count=0,
                compute_input_ns=0,
                compute_output_ns=0,
                **counters,
            )
            for name, counters in self.models.items()
        ]

    async def statistics(self) -> list[ModelStatistics]:
        return self.read()


async def serve(
    ledger: Ledger, state: End = "completed", status: int = 200, error: str | None = None, **values: Any
) -> Call:
    """A call from its reservation to its end; ``values`` as :func:`make_call` takes them."""
    call = make_call(**values)
    await ledger.reserve(call)
    await ledger.finish(call, state, status, error)
    return call


def abandon(ledger: Ledger) -> None:
    """Leave everything as ``kill -9`` would: no sync, no flush, the lock gone with the process."""
    for task in ledger._tasks:
        task.cancel()
    ledger._tasks = []
    ledger._journal._thread.shutdown()
    ledger._folder.close()


async def fetch(store: Store, query: str, **values: Any) -> list[Any]:
    async with store.read() as connection:
        return list((await connection.execute(text(query), values)).all())


async def until(condition: Callable[[], Awaitable[Any]] | Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until ``condition`` is true; returns its value, fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.01)
