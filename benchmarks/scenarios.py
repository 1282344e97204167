"""The scenarios: each turns one entry of a suite into measurements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from benchmarks import locust_engine
from benchmarks import measurement as measure
from benchmarks.client import Client, connect
from benchmarks.closedloop import ClosedLoop, ClosedRun, one_by_one, prepare
from benchmarks.locust_engine import LocustError, LocustLoad
from benchmarks.measurement import LEAST_CANCELLED, Measurement
from benchmarks.observe import MemoryWatch, Observer, Statistics, resources
from benchmarks.openloop import OpenLoop, OpenRun, highest_rate
from benchmarks.pacing import Schedule, bursts, poisson, steps
from benchmarks.recording import Outcome, Recording, sample_floor
from benchmarks.repeatability import AA
from benchmarks.stability import recovery_s
from benchmarks.suite import Scenario
from benchmarks.tenancy import fairness, tenant_of
from benchmarks.workloads import WORKLOADS, Workload, WrongAnswer

CONNECTIONS = 3072
"""More than a gateway lets wait for a model (``TIDEGATE_MAX_QUEUE``) and fewer than it accepts
(``TIDEGATE_MAX_CONNECTIONS``): an open loop's queue must form in the server."""
TIMEOUT_S = 10.0
RING = 2048
CALM = 0.3
"""Share of the peak before and after the overload whose end is timed."""
FIRST = 20
"""How many answers of a cold start are kept."""
CANCEL_EVERY = 10
ENOUGH = 3
"""A rate is tried for so many times the requests that its objective's percentile needs at least, or longer."""
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
    """Keys of several tenants, the hot one first."""
    projects: list[Observer] = field(default_factory=list)
    """The usage of each further project among them, where it is known that they are projects of their own."""
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
            # Asking would warm up what a cold start measures; a stack that has just started holds no records.
            cold = scenario.kind == "cold_start" and self.target.started_in_s is not None
            self._usage_base = 0 if cold else await self._settled_usage()
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
        if scenario.engine == "locust":
            return await self._locust(scenario, workload, users)
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

        return await self.observed(workload.model, go)

    async def _locust(self, scenario: Scenario, workload: Workload, users: int) -> Measurement:
        if scenario.protocol == "grpc" and self.target.grpc is None:
            raise ScenarioError("no gRPC address is known (--grpc-url)")
        load = LocustLoad(
            scenario.workload, self.target.http, self.target.key, users, scenario.duration_s, scenario.warmup_s,
            self.target.seed, (self.target.grpc or "").removeprefix("grpc://") if scenario.protocol == "grpc" else "",
        )  # fmt: skip

        async def go() -> tuple[Measurement, int]:
            try:
                run = await locust_engine.run(load)
            except LocustError as error:
                raise ScenarioError(str(error)) from error
            result = locust_engine.of_locust(
                run, scenario=scenario.kind, workload=scenario.workload, protocol=scenario.protocol, slo=scenario.slo
            )
            return result, run.answered

        return await self.observed(workload.model, go)

    async def open(
        self,
        scenario: Scenario,
        client: Client,
        workload: Workload,
        schedule: Schedule,
        label: str,
        *,
        arrivals: str = "Poisson",
        cancel_after_s: float | None = None,
        tenant: Callable[[int], tuple[int, str | None]] | None = None,
    ) -> tuple[Measurement, OpenRun]:
        """One open loop; with ``cancel_after_s`` one request in ten is given up so long after it was sent."""
        await client.warm(64)
        start = self._next()
        ring = prepare(client, workload, min(len(schedule), RING), start) if len(schedule) <= RING else ()
        loop = OpenLoop(
            client, workload, schedule, ring=ring, start=0 if ring else start, max_lag_ms=scenario.lag_limit_ms,
            cancel_every=CANCEL_EVERY if cancel_after_s else 0, cancel_after_s=cancel_after_s or 0.0, tenant=tenant,
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

        unjudged = cancel_after_s is not None or (tenant is not None and not self.target.projects)
        result = await self.observed(workload.model, go, unjudged=unjudged)
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

    async def observed(
        self,
        model: str,
        go: Callable[[], Awaitable[tuple[Measurement, int]]],
        *,
        unjudged: bool = False,
        cold: bool = False,
    ) -> Measurement:
        """``go`` with what the system says of itself before and after; nothing is asked before a ``cold`` one.

        The usage records of an ``unjudged`` one are not compared: nobody knows how many there must be.
        """
        observer, pid = self.target.observer, self.target.pid
        statistics_before = Statistics() if cold else await asyncio.to_thread(observer.statistics, model)
        resources_before = resources(pid) if pid else None
        async with MemoryWatch(pid) as memory:
            result, answered = await go()
        resources_after = resources(pid) if pid else None
        statistics = await asyncio.to_thread(observer.statistics, model)
        self._answered += answered
        known = self._usage_base is not None
        extra = await self._unexpected_usage(unjudged=unjudged)
        measure.attach(
            result,
            statistics=statistics - statistics_before if statistics and statistics_before else None,
            before=resources_before,
            after=resources_after,
            peak_rss_bytes=memory.peak_bytes,
            answered=answered,
            usage_records=None if extra is None else answered + extra,
        )
        if not known:
            result.notes.append("usage records were not checked: this address or key does not tell them")
        self.target.say(
            f"{result.scenario} {result.workload} {result.protocol} {result.label}: "
            f"{result.goodput:,.0f}/s good, p50 {_ms(result.latency.percentiles['p50'])}, {result.verdict}"
        )
        return result

    async def _settled_usage(self) -> int | None:
        """Completed usage records of the key once no more are being written; None if it may not see them."""
        last = await asyncio.to_thread(self._completed)
        deadline = time.monotonic() + USAGE_S
        while last is not None and time.monotonic() < deadline:
            await asyncio.sleep(1.2)
            now = await asyncio.to_thread(self._completed)
            if now == last:
                break
            last = now
        return last

    def _completed(self) -> int | None:
        """Completed usage records of all projects that the load comes from; None if one may not be seen."""
        counts = [observer.completed() for observer in (self.target.observer, *self.target.projects)]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    async def _unexpected_usage(self, *, unjudged: bool) -> int | None:
        """Usage records that there are too many (negative: too few) for the 2xx counted since the last check.

        A request whose client has gone may have been answered already, and keys that were given may be of any
        project: then the counts start anew, ``unjudged``.
        """
        if self._usage_base is None:
            return None
        expected = self._usage_base + self._answered
        found = None
        deadline = time.monotonic() + USAGE_S
        while time.monotonic() < deadline:
            found = await asyncio.to_thread(self._completed)
            if found is None or found >= expected:
                break
            await asyncio.sleep(0.2)
        if unjudged or found is None or found != expected:
            self._usage_base = await self._settled_usage()
        else:
            self._usage_base = found
        self._answered = 0
        return None if unjudged or found is None else found - expected

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
    results: dict[float, Measurement] = {}
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        if scenario.rate is not None:
            schedule = poisson(scenario.rate, scenario.duration_s, bench.target.seed)
            return [(await bench.open(scenario, client, workload, schedule, f"{scenario.rate:.0f}/s"))[0]]
        peak = await bench.peak(scenario, client, workload)
        needed = ENOUGH * sample_floor(scenario.slo.percentile)

        async def attempt(rate: float) -> bool:
            enough_s = scenario.warmup_s + needed / rate
            longer = msgspec.structs.replace(scenario, duration_s=max(scenario.duration_s, enough_s))
            schedule = poisson(rate, longer.duration_s, bench.target.seed)
            results[rate], _ = await bench.open(longer, client, workload, schedule, f"{rate:.0f}/s")
            return results[rate].meets_slo and results[rate].valid

        found = await highest_rate(attempt, peak * 0.2, peak * 0.8, precision=0.08)
    best = results.get(found) or next(iter(results.values()))
    best.max_rate = found
    best.label = f"{best.label}, highest rate" if found else best.label
    if not found:
        best.notes.append(f"no rate from {peak * 0.2:.0f}/s up meets {scenario.slo} with a valid generator")
    return list(results.values())


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
    """Multiples of the peak: does goodput hold, are rejections fast? Then how long recovery from the most takes."""
    results: list[Measurement] = []
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        peak = scenario.rate or await bench.peak(scenario, client, workload)
        for factor in scenario.factors:
            schedule = poisson(peak * factor, scenario.duration_s, bench.target.seed)
            result, _ = await bench.open(scenario, client, workload, schedule, f"{factor:g}x peak")
            results.append(result)
        results.append(await _recovery(bench, scenario, client, workload, peak))
    return results


async def _recovery(bench: Bench, scenario: Scenario, client: Client, workload: Workload, peak: float) -> Measurement:
    """Calm, the largest overload, and calm again for twice as long, in one schedule: the queue is the overload's."""
    factor, half = max(scenario.factors), scenario.duration_s / 2
    parts = [(peak * CALM, half), (peak * factor, half), (peak * CALM, 2 * scenario.duration_s)]
    whole = msgspec.structs.replace(scenario, duration_s=sum(seconds for _, seconds in parts), warmup_s=0.0)
    schedule = steps(parts, bench.target.seed)
    label = f"recovery after {factor:g}x peak"
    result, run = await bench.open(whole, client, workload, schedule, label, arrivals="steps")
    result.recovery_s = recovery_s(run.recording, run.start_ns + int(2 * half * 1e9), scenario.slo)
    found = f"after {result.recovery_s:g} s" if result.recovery_s is not None else f"not within {parts[-1][1]:g} s"
    result.notes.append(f"back within {scenario.slo} {found}")
    return result


async def _mixed_tenants(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """Several keys, one of which sends 80 % of the requests at 1.2 times the peak: do the others still get through?

    The others' requests are sent alone first, at the very moments at which they are sent beside the hot key.
    """
    keys = bench.target.tenant_keys
    if len(keys) < 2:
        raise ScenarioError("mixed tenants need two keys or more (--tenant-key, or a stack that is started here)")

    def other(index: int) -> tuple[int, str | None]:
        number = 1 + index % (len(keys) - 1)
        return number, keys[number]

    def anyone(index: int) -> tuple[int, str | None]:
        return (0, keys[0]) if index % 5 else other(index // 5)

    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        rate = scenario.rate or 1.2 * await bench.peak(scenario, client, workload)
        schedule = poisson(rate, scenario.duration_s, bench.target.seed)
        alone, before = await bench.open(
            scenario, client, workload, schedule[::5], f"{rate / 5:.0f}/s, without the hot key", tenant=other
        )
        mixed, after = await bench.open(scenario, client, workload, schedule, f"{rate:.0f}/s, hot key", tenant=anyone)
    for result, run in ((alone, before), (mixed, after)):
        for number in sorted(set(run.recording.tenant)):
            name = f"tenant {number}" if number else "hot"
            result.tenants[name] = tenant_of(run.recording, number, run.duration_s, scenario.slo)
    mixed.fairness = fairness(before.recording, after.recording, scenario.slo)
    mixed.notes.append(str(mixed.fairness))
    return [alone, mixed]


async def _cancellations(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """One request in ten is given up by its client after half the median service time; the others must not notice.

    The same schedule without cancellations comes first: it gives that median, and what to compare with.
    """
    async with bench.target.client(scenario.protocol) as client:
        workload = await bench.workload(scenario, client)
        rate = scenario.rate or 0.6 * await bench.peak(scenario, client, workload)
        schedule = poisson(rate, scenario.duration_s, bench.target.seed)
        kept, _ = await bench.open(scenario, client, workload, schedule, f"{rate:.0f}/s, none cancelled")
        median = kept.service.percentiles["p50"]
        if median is None:
            raise ScenarioError(f"too few answers to know when half of them are there: {kept.counts}")
        result, _ = await bench.open(
            scenario, client, workload, schedule, f"{rate:.0f}/s, 10 % cancelled", cancel_after_s=median / 2000
        )
    cancelled = result.counts[Outcome.CANCELLED.name.lower()]
    share = cancelled / max(1, sum(result.counts.values()))
    result.notes.append(
        f"{cancelled} cancelled ({share:.1%}), each {median / 2:.3g} ms after it was sent; p95 of the others "
        f"{_ms(result.latency.percentiles['p95'])}, without cancellations {_ms(kept.latency.percentiles['p95'])}"
    )
    if share < LEAST_CANCELLED:
        result.invalidate(f"only {share:.1%} were cancelled in time, {LEAST_CANCELLED:.0%} are needed")
    return [kept, result]


async def _cold_start(bench: Bench, scenario: Scenario) -> list[Measurement]:
    """From nothing to the first right answer, and how long the first requests take, one after the other."""
    started_in_s = bench.target.started_in_s
    if started_in_s is None:
        raise ScenarioError("cold start needs a stack that is started here")
    async with bench.target.client(scenario.protocol) as client:
        workload = WORKLOADS[scenario.workload](bench.target.seed)

        async def go() -> tuple[Measurement, int]:
            run = await one_by_one(client, workload, FIRST)
            result = measure.of_closed(
                run, scenario=scenario.kind, workload=scenario.workload, protocol=scenario.protocol, slo=scenario.slo,
                seed=bench.target.seed,
            )  # fmt: skip
            result.label = f"first {FIRST} requests"
            result.first_answers_ms = [round(value / 1000, 3) for value in run.recording.latencies_us().tolist()]
            return result, run.recording.count(Outcome.OK) + run.recording.count(Outcome.WRONG)

        result = await bench.observed(workload.model, go, cold=True)
    first, last = (next(iter(answers), None) for answers in (result.first_answers_ms, result.first_answers_ms[::-1]))
    result.notes = [note for note in result.notes if not note.startswith("unstable")]  # no steady state is meant
    result.notes.append(f"ready {started_in_s:.1f} s after the start; first answer {_ms(first)}, last {_ms(last)}")
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
