"""Closed loops made by Locust: the project's locustfile without a screen, in as many processes as cores allow.

What the processes counted within the measured window is summed by Locust's master and read here, so that a
report holds the same fields with the same verdicts whichever engine made the load. Latency counts from the
moment of sending, as in every closed loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.children import end, spawn
from benchmarks.floor import free_port
from benchmarks.measurement import BUSY_GENERATOR, Measurement, label_of, notes_on
from benchmarks.recording import MAX_FAULTS, Latency, Outcome, encoded, merged, most_over
from benchmarks.stability import Window, unsteady_rates
from benchmarks.suite import Slo
from benchmarks.users.tally import TALLIES

LOCUSTFILE = Path(benchmarks.__file__).with_name("locustfile.py")
STOP_S = 2
"""How long the last requests may take."""
START_S = 60.0
CUT_OFF = 0.01
"""Share of requests that may be cut off at the end before a run is INVALID."""


class LocustError(Exception):
    """Locust did not run, or counted nothing; the message holds its last line."""


@dataclass(slots=True, frozen=True)
class LocustLoad:
    """One closed loop; ``grpc`` is ``host:port`` and makes it one over gRPC."""

    workload: str
    host: str
    key: str | None
    users: int
    duration_s: float
    warmup_s: float
    seed: int
    grpc: str = ""

    @property
    def processes(self) -> int:
        """One for each core that may be used, none without a user."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(self.users, cores)

    def _distributed(self) -> list[str]:
        port = str(free_port())
        return [
            "--processes", str(self.processes), "--master-bind-host", "127.0.0.1", "--master-bind-port", port,
            "--master-port", port,
        ]  # fmt: skip

    def command(self, out: Path) -> list[str]:
        """``locust`` with its options; the key goes into the environment, where nobody lists it."""
        return [
            sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--skip-log-setup",
            "--host", self.host, "--users", str(self.users), "--spawn-rate", str(self.users),
            "--stop-timeout", str(STOP_S),
            *(self._distributed() if self.processes > 1 else []),
            *(["--tidegate-grpc", self.grpc] if self.grpc else []),
            "--tidegate-workloads", self.workload, "--tidegate-protocols", "grpc" if self.grpc else "http",
            "--seed", str(self.seed), "--warmup-seconds", str(self.warmup_s),
            "--window-seconds", str(self.duration_s), "--hdr-out", str(out),
        ]  # fmt: skip


@dataclass(slots=True, frozen=True)
class LocustRun:
    """What all processes counted."""

    load: LocustLoad
    counters: Mapping[str, Mapping[str, int]]
    histograms: Mapping[str, str]
    cpu_s: Mapping[str, float]
    """Processor seconds within the window, by process."""

    @property
    def answered(self) -> int:
        """2xx answers of the whole run, warm-up included."""
        return self.counters["totals"].get("answered", 0)


async def run(load: LocustLoad) -> LocustRun:
    """Raises :class:`LocustError`."""
    return await asyncio.to_thread(_run, load)


def _run(load: LocustLoad) -> LocustRun:
    with tempfile.TemporaryDirectory(prefix="tidegate-locust-") as folder:
        out, log = Path(folder), Path(folder) / "locust.log"
        environment = {**os.environ, "TIDEGATE_KEY": load.key or ""}
        process = spawn(load.command(out), log, environment, out)
        try:
            process.wait(load.warmup_s + load.duration_s + STOP_S + START_S)
        except subprocess.TimeoutExpired as error:
            raise LocustError("Locust did not end") from error
        finally:
            if process.poll() is None:
                end(process, 5.0)
        try:
            found = json.loads((out / TALLIES).read_text())
            (counted,) = found["tallies"].values()
        except (OSError, ValueError, KeyError) as error:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise LocustError(f"Locust counted nothing: {lines[-1] if lines else 'no output'}") from error
        return LocustRun(load, counted["counters"], counted["histograms"], found["cpu_s"])


def of_locust(run: LocustRun, *, scenario: str, workload: str, protocol: str, slo: Slo) -> Measurement:
    """The measurement, as :func:`benchmarks.measurement.of_closed` makes it from samples."""
    load, totals = run.load, run.counters["totals"]
    duration = load.duration_s
    right, ended, shed = (merged([run.histograms[name].encode()]) for name in ("right", "ended", "shed"))
    counts = {outcome.name.lower(): run.counters["outcomes"].get(outcome.name.lower(), 0) for outcome in Outcome}
    samples = sum(counts.values())
    in_time = _within(right, slo.ms)
    rates = [float(run.counters["seconds"].get(str(second), 0)) for second in range(int(duration))]
    busiest = max(run.cpu_s.values(), default=0.0) / duration
    cut_off = totals.get("begun", 0) - totals.get("finished", 0)
    reasons = [] if samples else ["no samples"]
    if cut_off > CUT_OFF * max(1, samples):
        reasons.append(f"{cut_off} requests were cut off at the end: they took longer than {STOP_S} s")
    unstable = unsteady_rates(rates)
    notes = notes_on(counts["wrong"], unstable)
    if busiest > BUSY_GENERATOR:
        notes.append(f"a lower bound: one of Locust's processes used {busiest:.0%} of a core")
    latency = Latency.of(ended)
    return Measurement(
        scenario=scenario, workload=workload, protocol=protocol, label=f"{label_of(load.users)}, Locust",
        load={
            "model": "closed", "engine": "locust", "users": load.users, "think_time_s": 0, "seed": load.seed,
            "processes": load.processes, "generator_cpu_share": round(sum(run.cpu_s.values()) / duration, 3),
        },
        duration_s=duration, verdict="INVALID" if reasons else "VALID", reasons=reasons, notes=notes, counts=counts,
        statuses=dict(run.counters["statuses"]), faults=dict(run.counters["faults"]),
        throughput=(counts["ok"] + counts["wrong"]) / duration, goodput=in_time / duration, slo=slo,
        meets_slo=samples - in_time <= most_over(samples, slo.percentile)
        and samples - counts["ok"] <= samples * MAX_FAULTS,
        latency=latency, histogram=encoded(ended), service=latency, shed_latency=Latency.of(shed),
        shed_histogram=encoded(shed) if shed.get_total_count() else "",
        bytes_in=totals.get("bytes_in", 0), bytes_out=totals.get("bytes_out", 0),
        bytes_in_per_s=totals.get("bytes_in", 0) / duration, bytes_out_per_s=totals.get("bytes_out", 0) / duration,
        steady=unstable is None, windows=[Window(float(number), rate, None, None) for number, rate in enumerate(rates)],
        connections=load.users,
        littles_law_error=_law(load.users, samples, duration, latency),
    )  # fmt: skip


def _within(histogram: Any, slo_ms: float) -> int:
    """Values of a histogram of microseconds that are at most ``slo_ms``."""
    return sum(
        item.count_added_in_this_iter_step
        for item in histogram.get_recorded_iterator()
        if histogram.get_lowest_equivalent_value(item.value_iterated_to) <= slo_ms * 1000
    )


def _law(users: int, samples: int, duration_s: float, latency: Latency) -> float | None:
    if latency.mean is None or samples <= 100:
        return None
    return abs(users - samples / duration_s * latency.mean / 1000) / users
