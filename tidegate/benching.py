"""What ``tidegate bench`` does; imported when a command runs, because it needs the ``bench`` extra."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from benchmarks import cost, runner
from benchmarks import suite as suites
from benchmarks.overhead import Comparison, Leg, compare
from benchmarks.recording import as_dict
from benchmarks.report import tables
from benchmarks.report import write as report
from benchmarks.stack import Stack, StackError
from benchmarks.workloads import WORKLOADS
from tidegate.console import err, fail, print_json, print_table, progress

Result = TypeVar("Result")
_SHORT = {
    "Results": ("goodput/s", "p50", "p95", "shed", "faults", "verdict"),
    "Cost": ("goodput/s", "100 %", "30 %", "objective met"),
}
"""The columns that fit a terminal; the report has them all."""


@dataclass(slots=True, frozen=True)
class Where:
    """Addresses given on the command line; None: not given."""

    gateway: str | None = None
    gateway_grpc: str | None = None
    triton: str | None = None
    triton_grpc: str | None = None
    key: str | None = None
    third: str | None = None


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run`` on uvloop."""
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def numbers(text: str) -> list[int]:
    """``1,8,32``; ends the command if it is anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"{text}: numbers separated by commas are expected", code=2)


def start(stack: ExitStack, models: Sequence[str], repository: Path) -> Stack:
    """A stack that ends with ``stack``; ends the command if it does not start."""
    err.print(f"starting Triton and the gateway with {', '.join(models) or 'all models'} …", highlight=False)
    try:
        return stack.enter_context(Stack(models, model_repository=repository))
    except StackError as error:
        fail(str(error))


def overhead(
    where: Where,
    protocols: str,
    concurrency: str,
    rounds: int,
    leg_s: float,
    seed: int,
    repository: Path,
    *,
    json_: bool,
) -> None:
    """``tidegate bench overhead``."""
    with ExitStack() as stack:
        if where.gateway is None and where.gateway_grpc is None:
            found = start(stack, ["identity"], repository).addresses
            where = Where(found.gateway, found.gateway_grpc, found.triton, found.triton_grpc, found.key, where.third)
        legs = {
            "http": _legs(where.triton, where.gateway, where.key, "http://"),
            "grpc": _legs(where.triton_grpc, where.gateway_grpc, where.key, "grpc://"),
        }
        if where.third is not None:
            legs["http"].append(
                Leg("third", where.third if "//" in where.third else f"http://{where.third}", where.key)
            )
        wanted = [name.strip() for name in protocols.split(",") if name.strip()]
        for name in wanted:
            if len(legs.get(name, [])) < 2:
                fail(f"{name}: both addresses are needed (--url and --triton, or --grpc-url and --triton-grpc)", code=2)
        comparisons = run_async(_overhead(wanted, legs, numbers(concurrency), rounds, leg_s, seed))
    if json_:
        print_json(as_dict([comparison.to_dict() for comparison in comparisons]))
    else:
        _print_overhead(comparisons)


def _legs(direct: str | None, gateway: str | None, key: str | None, scheme: str) -> list[Leg]:
    def full(address: str) -> str:
        return address if "//" in address else scheme + address

    if not direct or not gateway:
        return []
    return [Leg("triton", full(direct)), Leg("gateway", full(gateway), key)]


async def _overhead(
    protocols: list[str], legs: dict[str, list[Leg]], concurrencies: list[int], rounds: int, leg_s: float, seed: int
) -> list[Comparison]:
    workload = WORKLOADS["identity"](seed)
    results: list[Comparison] = []
    total = rounds * len(concurrencies) * sum(len(legs[protocol]) for protocol in protocols)
    with progress() as bar:
        task = bar.add_task("overhead", total=total)

        def on_leg(text: str) -> None:
            bar.update(task, advance=1, description=text)

        for protocol in protocols:
            for concurrency in concurrencies:
                try:
                    comparison = await compare(
                        protocol, workload, legs[protocol], concurrency, rounds=rounds, leg_s=leg_s, on_leg=on_leg
                    )
                except OSError as error:
                    fail(f"{protocol}: {error}")
                results.append(comparison)
    return results


def _print_overhead(comparisons: list[Comparison]) -> None:
    rows: list[list[Any]] = []
    for comparison in comparisons:
        for leg in comparison.to_dict()["legs"]:
            rows.append(
                [
                    f"{comparison.protocol} {comparison.concurrency}",
                    leg["name"],
                    f"{leg['throughput'].value:,.0f}",
                    leg["ratio"] or "",
                    f"{leg['median_ms'].value:.2f}",
                    leg["added_median_ms"] or "",
                    f"{leg['client_cpu_us']:.0f}",
                    leg["faults"],
                ]
            )
            if leg["fault"]:
                err.print(f"[yellow]{comparison.protocol} {comparison.concurrency}:[/] {leg['fault']}", highlight=False)
    columns = ["users", "leg", "req/s", "ratio", "p50 ms", "added ms", "client µs", "faults"]
    print_table("The gateway beside Triton itself, model identity (medians over rounds, 95 % intervals)", columns, rows)


@dataclass(slots=True, frozen=True)
class RunOptions:
    """Options of ``tidegate bench run``."""

    suite: str
    where: Where
    tenant_keys: tuple[str, ...]
    out: Path | None
    duration: float | None
    quick: bool
    prices: Path | None
    machine: str
    seed: int
    repository: Path
    json_: bool


def run_suite(options: RunOptions) -> None:
    """``tidegate bench run``."""
    try:
        chosen = suites.shortened(suites.read(options.suite), duration_s=options.duration, quick=options.quick)
        priced = cost.machine(cost.read_prices(options.prices), options.machine)
    except (suites.SuiteError, cost.PricesError) as error:
        fail(str(error), code=2)
    where = options.where
    if where.gateway is not None and len(chosen.variants) > 1:
        fail("this suite changes the stack's settings, so it starts its own: leave out --url", code=2)
    folder = options.out or Path("benchmarks") / "results" / chosen.name
    grpc = f"grpc://{where.gateway_grpc.removeprefix('grpc://')}" if where.gateway_grpc else None
    plan = runner.Plan(
        chosen, folder, options.seed, priced, where.gateway, grpc, where.key, list(options.tenant_keys),
        options.repository, say=lambda text: err.print(f"  {text}", highlight=False, markup=False),
    )  # fmt: skip
    try:
        results = run_async(runner.run(plan))
    except StackError as error:
        fail(str(error))
    page = report.write(results, folder)
    if options.json_:
        print_json(as_dict(results))
    else:
        for table in tables.tables(results)[:2]:
            _print_short(table)
    for reason in results.noise:
        err.print(f"[yellow]not for headlines:[/] {reason}", highlight=False)
    err.print(f"report: {page}", highlight=False)
    if not results.measurements:
        fail("nothing could be measured: " + "; ".join(results.skipped))
    if not any(item.valid for item in results.measurements):
        fail("every measurement is INVALID")


def _print_short(table: tables.Table) -> None:
    wanted = [table.columns.index(name) for name in _SHORT[table.title]]
    names = [table.columns.index(name) for name in ("scenario", "workload", "protocol", "load")]
    rows = [[" ".join(row.cells[n] for n in names), *(row.cells[n] for n in wanted)] for row in table.rows]
    print_table(table.title, ["run", *(table.columns[number] for number in wanted)], rows)
