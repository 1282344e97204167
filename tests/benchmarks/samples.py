"""Measurements and reports as a run would make them, for tests of what is done with them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from benchmarks.cost import Machine
from benchmarks.measurement import Measurement
from benchmarks.recording import Latency, encoded, histogram_of
from benchmarks.runner import Results
from benchmarks.stability import Window
from benchmarks.suite import Scenario, Slo, Suite

ENVIRONMENT: dict[str, Any] = {
    "utc": "2026-01-01T00:00:00Z",
    "command": "tidegate bench run <quick>",
    "machine": {"processor": "P", "cores_usable": 2, "memory_bytes": 2**30, "kernel": "6", "gpu": []},
    "software": {"python": "3.11"},
    "git": {"commit": "", "dirty": False},
    "network": {"load_generator": "same host, loopback"},
}


def measurement(users: int, goodput: float, *, run: int = 0, **changes: Any) -> Measurement:
    histogram = histogram_of([int(users * 1000)] * 200)
    latency = Latency.of(histogram)
    values: dict[str, Any] = {
        "scenario": "closed_sweep", "workload": "identity", "protocol": "http", "label": f"{users} users", "run": run,
        "load": {"model": "closed", "users": users}, "duration_s": 6.0, "verdict": "VALID", "reasons": [],
        "counts": {"ok": 200, "wrong": 0, "shed": 0, "error": 0, "timeout": 0, "cancelled": 0},
        "statuses": {"200": 200}, "faults": {}, "throughput": goodput, "goodput": goodput, "slo": Slo(100.0),
        "meets_slo": True, "latency": latency, "histogram": encoded(histogram), "service": latency,
        "shed_latency": Latency.of(histogram_of([])),
        "bytes_in": 1, "bytes_out": 1, "steady": True, "mean_batch": 1.5,
        "windows": [Window(float(n), goodput, 1.0, 2.0) for n in range(6)],
    }  # fmt: skip
    return Measurement(**{**values, **changes})


def results_of(*measurements: Measurement) -> Results:
    machine = Machine("a machine", 0.1, "https://example.org", dt.date(2026, 1, 1))
    suite = Suite("A <suite>", (Scenario("closed_sweep", "identity"),))
    return Results(suite, 1, machine, ENVIRONMENT, ["the machine was busy"], list(measurements), ["soak: no time"])
