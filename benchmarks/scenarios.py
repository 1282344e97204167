"""The scenarios: each turns one entry of a suite into measurements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from benchmarks import measurement as measure
from benchmarks.client import Client, connect
from benchmarks.closedloop import ClosedLoop, ClosedRun, prepare
from benchmarks.measurement import Measurement
from benchmarks.observe import Observer, resources
from benchmarks.openloop import OpenLoop, OpenRun, highest_rate
from benchmarks.pacing import Schedule, bursts, poisson
from benchmarks.recording import Outcome, Recording
from benchmarks.repeatability import AA
from benchmarks.suite import Scenario
from benchmarks.workloads import WORKLOADS, Workload, WrongAnswer

CONNECTIONS = 512
TIMEOUT_S = 10.0
RING = 2048
RECOVERY_S = 5.0
AA_PAIRS = 5
USAGE_S = 15.0
"""How long usage records are waited for."""


class ScenarioError(Exception):
    """A scenario cannot run here; the message says why."""


@dataclass(slots=True)
class Target:
    """The system under test and what is known about it."""

    http: str
    grpc: str | None
    key: str | None
    observer: Observer
    seed: int = 1
    pid: int | None = None
    """Process whose tree is the system; None if it runs elsewhere."""
    started_in_s: float | None = None
    tenant_keys: list[str] = field(default_factory=list)
    keep: Callable[[str, Recording], None] = lambda _name, _recording: None
    """Gets every run's samples."""
    say: Callable[[str], None] = lambda _text: None
    """Gets a line of progress."""

    def client(self, protocol: str) -> Client:
        """A client of the protocol's address. Raises :class:`ScenarioError` if there is none."""
        if protocol == "http":
            return connect(self.http, self.key, limit=CONNECTIONS, timeout_s=TIMEOUT_S)
        if self.grpc is None:
            raise ScenarioError("no gRPC address is known (--grpc-url)")
        return connect(self.grpc, self.key, timeout_s=TIMEOUT_S)


Runner = Callable[["Bench", Scenario], Awaitable[list[Measurement]]]


class Bench:
    """Runs scenarios against one target, with statistics, usage records and processor time taken around each run."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._position = 0
        self._usage_base: int | None = None
        self._answered = 0

    async def run(self, scenario: Scenario) -> list[Measurement]:
        """All measurements of ``scenario``. Raises :class:`ScenarioError` or ``OSError``."""
        if self._usage_base is None:
            self._usage_base = await self._settled_usage()
        return await SCENARIOS[scenario.kind](self, scenario)

    async def workload(self, scenario: Scenario, client: Client) -> Workload:
        """The scenario's workload, its golden inputs asked once, alone: known answers must be right.

        Raises :class:`ScenarioError` if the target does not answer, or not rightly.
        """
        workload = WORKLOADS[scenario.workload](self.target.seed)
        payloads = [workload.golden(number) for number in range(workload.goldens)] or [workload.request(0)]
        refused = 0
        for payload in payloads:
            exchange = await client.post(payload)
            self._answered += 200 <= exchange.status < 300
            if exchange.status != 200:
                text = exchange.body[:160].decode("utf-8", "replace")
                raise ScenarioError(f"{scenario.workload} answers {exchange.status or 'nothing'}: {text}")
            try:
                workload.check(payload, exchange.body)
            except WrongAnswer as error:
                refused += 1
                self.target.say(f"{scenario.workload}: {error}")
        if refused > len(payloads) * 0.2:
            raise ScenarioError(f"{scenario.workload}: {refused} of {len(payloads)} golden inputs are answered wrongly")
        return workload

    async def closed(
        self, scenario: Scenario, client: Client, workload: Workload, users: int, half: str = ""
    ) -> Measurement:
        """One closed loop; ``half`` of an A/A pair is part of its label."""
        loop = ClosedLoop(client, workload, users, start=self._next())

        async def go() -> tuple[Measurement, int]:
            run: ClosedRun = await loop.run(scenario.duration_s, scenario.warmup_s)
            result = measure.of_closed(
                run, scenario=scenario.kind, workload=scenario.workload, protocol=scenario.protocol, slo=scenario.slo,
                seed=self.target.seed,
            )  # fmt: skip
            if half:
                result.label += f", {half}"
            else:
                self.target.keep(f"{scenario.kind}-{scenario.workload}-{scenario.protocol}-{users}", run.recording)
            return result, loop.answered

        return await self._observed(workload.model, go)

    async def open(
        self,
        scenario: Scenario,
        client: Client,
        workload: Workload,
        schedule: Schedule,
        label: str,
        *,
        arrivals: str = "Poisson",
        cancel_every: int = 0,
        tenant: Callable[[int], tuple[int, str | None]] | None = None,
    ) -> tuple[Measurement, OpenRun]:
        """One open loop."""
        await client.warm(64)
        start = self._next()
        ring = prepare(client, workload, min(len(schedule), RING), start) if len(schedule) <= RING else ()
        loop = OpenLoop(
            client, workload, schedule, ring=ring, start=0 if ring else start, max_lag_ms=scenario.lag_limit_ms,
            cancel_every=cancel_every, tenant=tenant,
        )  # fmt: skip
        runs: list[OpenRun] = []

        async def go() -> tuple[Measurement, int]:
            run = await loop.run(scenario.duration_s, scenario.warmup_s)
            runs.append(run)
            result = measure.of_open(
                run, scenario=scenario.kind, workload=scenario.workload, protocol=scenario.protocol, label=label,
                slo=scenario.slo, seed=self.target.seed, arrivals=arrivals,
            )  # fmt: skip
            self.target.keep(f"{scenario.kind}-{scenario.workload}-{scenario.protocol}-{label}", run.recording)
            return result, loop.answered

        result = await self._observed(workload.model, go, cancelled=bool(cancel_every))
        return result, runs[0]

    async def peak(self, scenario: Scenario, client: Client, workload: Workload) -> float:
        """Right answers a second of a short closed loop with many users: what rates are derived from."""
        users = 64 if workload.name == "identity" else 16
        loop = ClosedLoop(client, workload, users, start=self._next())
        run = await loop.run(max(2.0, scenario.duration_s / 4), 0.5)
        self._answered += loop.answered
        if run.throughput <= 0:
            raise ScenarioError(f"{scenario.workload}: no right answers; {run.recording.statuses()}")
        self.target.say(f"{scenario.workload}: {run.throughput:,.0f}/s with {users} users")
        return run.throughput

    async def _observed(
        self, model: str, go: Callable[[], Awaitable[tuple[Measurement, int]]], *, cancelled: bool = False
    ) -> Measurement:
        observer, pid = self.target.observer, self.target.pid
        statistics_before = await asyncio.to_thread(observer.statistics, model)
        resources_before = resources(pid) if pid else None
        result, answered = await go()
        resources_after = resources(pid) if pid else None
        statistics = await asyncio.to_thread(observer.statistics, model)
        self._answered += answered
        extra = await self._unexpected_usage(cancelled=cancelled)
        measure.attach(
            result,
            statistics=statistics - statistics_before if statistics and statistics_before else None,
            before=resources_before,
            after=resources_after,
            answered=answered,
            usage_records=None if extra is None else answered + extra,
        )
        self.target.say(
            f"{result.scenario} {result.workload} {result.protocol} {result.label}: "
            f"{result.goodput:,.0f}/s good, p50 {_ms(result.latency.percentiles['p50'])}, {result.verdict}"
        )
        return result

    async def _settled_usage(self) -> int | None:
        """Completed usage records of the key once no more are being written; None if it may not see them."""
        observer = self.target.observer
        last = await asyncio.to_thread(observer.completed)
        deadline = time.monotonic() + USAGE_S
        while last is not None and time.monotonic() < deadline:
            await asyncio.sleep(1.2)
            now = await asyncio.to_thread(observer.completed)
            if now == last:
                break
            last = now
        return last

    async def _unexpected_usage(self, *, cancelled: bool) -> int | None:
        """Usage records that there are too many (negative: too few) for the 2xx counted since the last check.

        A request whose client has gone may have been answered already: after cancellations the counts
        start anew, unjudged.
        """
        if self._usage_base is None:
            return None
        expected = self._usage_base + self._answered
        found = None
        deadline = time.monotonic() + USAGE_S
        while time.monotonic() < deadline:
            found = await asyncio.to_thread(self.target.observer.completed)
            if found is None or found >= expected:
                break
            await asyncio.sleep(0.2)
        if cancelled or found is None or found != expected:
            self._usage_base = await self._settled_usage()
        else:
            self._usage_base = found
        self._answered = 0
        return None if cancelled or found is None else found - expected

    def _next(self) -> int:
        """A range of request numbers that no other run uses."""
        self._position += 1_000_000
        return self._position


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"


async def _single_stream(bench: Bench, scenario: Scenario) -> list[Measurement]:
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        return [await bench.closed(scenario, client, workload, 1)]


async def _closed_sweep(bench: Bench, scenario: Scenario) -> list[Measurement]:
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        return [await bench.closed(scenario, client, workload, users) for users in scenario.users]


async def _noise_floor(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """A/A: the same load on the same system in turns; what differs is the machine's noise."""
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        halves = [half for pair in range(AA_PAIRS) for half in (AA if pair % 2 == 0 else AA[::-1])]
        return [await bench.closed(scenario, client, workload, scenario.users[-1], half) for half in halves]


async def _offline(bench: Bench, scenario: Scenario) -> list[Measurement]:
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        return [await bench.closed(scenario, client, workload, scenario.users[-1])]


async def _server(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """Binary search for the highest Poisson rate that meets the objective."""
    results: list[Measurement] = []
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        if scenario.rate is not None:
            schedule = poisson(scenario.rate, scenario.duration_s, bench.target.seed)
            return [(await bench.open(scenario, client, workload, schedule, f"{scenario.rate:.0f}/s"))[0]]
        peak = await bench.peak(scenario, client, workload)

        async def attempt(rate: float) -> bool:
            schedule = poisson(rate, scenario.duration_s, bench.target.seed)
            result, run = await bench.open(scenario, client, workload, schedule, f"{rate:.0f}/s")
            results.append(result)
            return run.meets(scenario.slo.percentile, scenario.slo.ms) and result.valid

        found = await highest_rate(attempt, peak * 0.2, peak * 0.8, precision=0.08)
    for result in results:
        if found and abs(result.load["offered"] - found) / found < 0.1 and result.meets_slo:
            result.notes.append(f"highest rate that meets {scenario.slo}: {found:.0f}/s")
    if not found and results:
        results[0].notes.append(f"no rate from {peak * 0.2:.0f}/s up meets {scenario.slo} with a valid generator")
    return results


async def _burst(bench: Bench, scenario: Scenario) -> list[Measurement]:
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        rate = scenario.rate or 0.4 * await bench.peak(scenario, client, workload)
        schedule = bursts(rate, scenario.duration_s, bench.target.seed)
        result, _ = await bench.open(
            scenario, client, workload, schedule, f"{rate:.0f}/s, bursts x4", arrivals="bursts"
        )
        return [result]


async def _soak(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """Half the peak for the whole duration, in ten parts whose memory is compared."""
    results: list[Measurement] = []
    part = msgspec.structs.replace(scenario, duration_s=scenario.duration_s / 10, warmup_s=min(2.0, scenario.warmup_s))
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        rate = scenario.rate or 0.5 * await bench.peak(scenario, client, workload)
        for number in range(10):
            schedule = poisson(rate, part.duration_s, bench.target.seed + number)
            result, _ = await bench.open(part, client, workload, schedule, f"{rate:.0f}/s, part {number + 1}")
            results.append(result)
    first, last = results[0].rss_bytes, results[-1].rss_bytes
    if first and last:
        results[-1].notes.append(f"memory from {first / 2**20:.0f} to {last / 2**20:.0f} MiB over the soak")
    return results


async def _overload(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """Multiples of the peak, then a calm run: does goodput hold, are rejections fast, does it recover?"""
    results: list[Measurement] = []
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        peak = scenario.rate or await bench.peak(scenario, client, workload)
        for factor in scenario.factors:
            schedule = poisson(peak * factor, scenario.duration_s, bench.target.seed)
            result, _ = await bench.open(scenario, client, workload, schedule, f"{factor:g}x peak")
            results.append(result)
        calm = msgspec.structs.replace(scenario, duration_s=RECOVERY_S, warmup_s=0.0)
        schedule = poisson(peak * 0.3, RECOVERY_S, bench.target.seed)
        result, _ = await bench.open(calm, client, workload, schedule, "recovery, 0.3x peak")
        results.append(result)
    return results


async def _mixed_tenants(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """Four keys, one of which sends 80 % of the requests at 1.2 times the peak: do the others still get through?"""
    keys = bench.target.tenant_keys
    if len(keys) < 2:
        raise ScenarioError("mixed tenants need two keys or more (--tenant-key, or a stack that is started here)")
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        rate = scenario.rate or 1.2 * await bench.peak(scenario, client, workload)

        def tenant(index: int) -> tuple[int, str | None]:
            number = 0 if index % 5 else 1 + (index // 5) % (len(keys) - 1)
            return number, keys[number]

        schedule = poisson(rate, scenario.duration_s, bench.target.seed)
        result, run = await bench.open(scenario, client, workload, schedule, f"{rate:.0f}/s, hot key", tenant=tenant)
    for number in range(len(keys)):
        result.tenants["hot" if number == 0 else f"tenant {number}"] = measure.latency_of_tenant(run.recording, number)
    return [result]


async def _cancellations(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """One request in ten is given up by its client after 20 ms; the others must not notice."""
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        rate = scenario.rate or 0.6 * await bench.peak(scenario, client, workload)
        schedule = poisson(rate, scenario.duration_s, bench.target.seed)
        result, _ = await bench.open(
            scenario, client, workload, schedule, f"{rate:.0f}/s, 10 % cancelled", cancel_every=10
        )
    result.notes.append(f"{result.counts[Outcome.CANCELLED.name.lower()]} cancelled")
    return [result]


async def _cold_start(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """From nothing to the first right answer, and how long the first requests take."""
    if bench.target.started_in_s is None:
        raise ScenarioError("cold start needs a stack that is started here")
    brief = msgspec.structs.replace(scenario, duration_s=3.0, warmup_s=0.0)
    async with bench.target.client(scenario.protocol) as client:
        workload = WORKLOADS[scenario.workload](bench.target.seed)
        result = await bench.closed(brief, client, workload, 1)
    result.notes.append(f"ready {bench.target.started_in_s:.1f} s after the start")
    return [result]


SCENARIOS: Mapping[str, Runner] = MappingProxyType(
    {
        "single_stream": _single_stream,
        "closed_sweep": _closed_sweep,
        "server": _server,
        "offline": _offline,
        "noise_floor": _noise_floor,
        "burst": _burst,
        "soak": _soak,
        "overload": _overload,
        "mixed_tenants": _mixed_tenants,
        "cancellations": _cancellations,
        "cold_start": _cold_start,
    }
)
