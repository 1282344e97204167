"""``tidegate bench``: throughput, latency and cost, measured honestly (docs/06-benchmarks.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop

from benchmarks import cost, runner
from benchmarks import suite as suites
from benchmarks.overhead import Comparison, Leg, compare
from benchmarks.recording import as_dict
from benchmarks.report import tables
from benchmarks.report import write as report
from benchmarks.stack import Stack, StackError
from benchmarks.workloads import WORKLOADS
from tidegate.console import JsonFlag, err, fail, print_json, print_table, progress

app = typer.Typer(help="Throughput, latency and cost, measured honestly.", no_args_is_help=True)

Result = TypeVar("Result")
Seed = Annotated[int, typer.Option(help="Seed of inputs and arrivals.")]
Repository = Annotated[Path, typer.Option(help="Folder of the models, for a stack that is started here.")]


def _run(main: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run`` on uvloop."""
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        return asyncio.run(main)
    finally:
        asyncio.set_event_loop_policy(policy)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"{text}: numbers separated by commas are expected", code=2)


@app.command()
def overhead(
    url: Annotated[str | None, typer.Option(help="Gateway to measure; default: a stack is started.")] = None,
    grpc_url: Annotated[str | None, typer.Option(help="Its gRPC address, host:port.")] = None,
    key: Annotated[str | None, typer.Option(help="API key.", envvar="TIDEGATE_BENCH_KEY")] = None,
    triton: Annotated[str | None, typer.Option(help="Triton's own HTTP address, host:port.")] = None,
    triton_grpc: Annotated[str | None, typer.Option(help="Triton's own gRPC address, host:port.")] = None,
    third: Annotated[
        str | None, typer.Option(help="A further HTTP leg, e.g. nginx in front of the same Triton.")
    ] = None,
    protocols: Annotated[str, typer.Option(help="http, grpc or both, separated by a comma.")] = "http,grpc",
    concurrency: Annotated[str, typer.Option(help="Concurrencies, separated by commas.")] = "1,8,32,64",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every leg once.")] = 7,
    leg_seconds: Annotated[float, typer.Option(min=0.2, help="Seconds of one leg.")] = 3.0,
    seed: Seed = 1,
    model_repository: Repository = Path("model_repository"),
    json_: JsonFlag = False,
) -> None:
    """Compare the gateway with Triton itself on `identity`: throughput ratio and added latency.

    Legs alternate within one run; intervals are 95 %, from resampling the rounds.

    Example: tidegate bench overhead --concurrency 1,32 --rounds 5
    """
    with ExitStack() as stack:
        where = {"gateway": url, "gateway_grpc": grpc_url, "triton": triton, "triton_grpc": triton_grpc}
        if url is None and grpc_url is None:
            started = _start(stack, ["identity"], model_repository)
            key = started.addresses.key
            where = {name: getattr(started.addresses, name) for name in where}
        legs = {
            "http": _legs(where["triton"], where["gateway"], key, "http://"),
            "grpc": _legs(where["triton_grpc"], where["gateway_grpc"], key, "grpc://"),
        }
        if third is not None:
            legs["http"].append(Leg("third", third if "//" in third else f"http://{third}", key))
        wanted = [name.strip() for name in protocols.split(",") if name.strip()]
        for name in wanted:
            if len(legs.get(name, [])) < 2:
                fail(f"{name}: both addresses are needed (--url and --triton, or --grpc-url and --triton-grpc)", code=2)
        comparisons = _run(_overhead(wanted, legs, _numbers(concurrency), rounds, leg_seconds, seed))
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
        for protocol in protocols:
            for concurrency in concurrencies:
                try:
                    comparison = await compare(
                        protocol, workload, legs[protocol], concurrency, rounds=rounds, leg_s=leg_s,
                        on_leg=lambda text: bar.update(task, advance=1, description=text),
                    )  # fmt: skip
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


def _start(stack: ExitStack, models: list[str], repository: Path) -> Stack:
    err.print(f"starting Triton and the gateway with {', '.join(models) or 'all models'} …", highlight=False)
    try:
        return stack.enter_context(Stack(models, model_repository=repository))
    except StackError as error:
        fail(str(error))


@app.command("run")
def run_suite(
    suite: Annotated[str, typer.Argument(help=f"Suite ({', '.join(suites.names())}) or a .yaml file.")] = "quick",
    url: Annotated[str | None, typer.Option(help="Gateway to load; default: a stack is started.")] = None,
    grpc_url: Annotated[str | None, typer.Option(help="Its gRPC address, host:port.")] = None,
    key: Annotated[str | None, typer.Option(help="API key.", envvar="TIDEGATE_KEY")] = None,
    tenant_key: Annotated[list[str] | None, typer.Option(help="Further keys for mixed tenants; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: benchmarks/results/<suite>.")] = None,
    duration: Annotated[
        float | None, typer.Option(min=1, help="Seconds of each measurement, in place of the suite's.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="3 s each, one run, fewer points: a rehearsal.")] = False,
    prices: Annotated[Path | None, typer.Option(help="Price list in place of the suite's own.")] = None,
    machine: Annotated[str, typer.Option(help="Machine of the price list that stands for this one.")] = "cpu-2",
    seed: Seed = 1,
    model_repository: Repository = Path("model_repository"),
    json_: JsonFlag = False,
) -> None:
    """Run a suite and write its report: HTML with plots, Markdown, JSON and every sample.

    Example: tidegate bench run tasks --url http://127.0.0.1:8080 --key "$(cat .tidegate/demo.key)"
    """
    try:
        chosen = suites.shortened(suites.read(suite), duration_s=duration, quick=quick)
        priced = cost.machine(cost.read_prices(prices), machine)
    except (suites.SuiteError, cost.PricesError) as error:
        fail(str(error), code=2)
    if url is not None and len(chosen.variants) > 1:
        fail("this suite changes the stack's settings, so it starts its own: leave out --url", code=2)
    folder = out or Path("benchmarks") / "results" / chosen.name
    plan = runner.Plan(
        chosen, folder, seed, priced, url, f"grpc://{grpc_url.removeprefix('grpc://')}" if grpc_url else None, key,
        list(tenant_key or []), model_repository, say=lambda text: err.print(f"  {text}", highlight=False, markup=False),
    )  # fmt: skip
    try:
        results = _run(runner.run(plan))
    except StackError as error:
        fail(str(error))
    page = report.write(results, folder)
    if json_:
        print_json(as_dict(results))
        return
    for table in tables.tables(results)[:2]:
        columns = [number for number, name in enumerate(table.columns) if name not in _HIDDEN]
        rows = [[row.cells[number] for number in columns] for row in table.rows]
        print_table(table.title, [table.columns[number] for number in columns], rows)
    for reason in results.noise:
        err.print(f"[yellow]not for headlines:[/] {reason}", highlight=False)
    err.print(f"report: {page}", highlight=False)
    if results.measurements and not any(item.valid for item in results.measurements):
        fail("every measurement is INVALID")
    if not results.measurements:
        fail("nothing could be measured: " + "; ".join(results.skipped))


_HIDDEN = {"remarks", "p99 service", "protocol", "60 %", "30 %", "objective"}
