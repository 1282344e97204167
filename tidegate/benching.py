"""What ``tidegate bench`` does; imported when a command runs, because it needs the ``bench`` extra."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

from benchmarks import batching
from benchmarks import suite as suites
from benchmarks import tasks as ceilings
from benchmarks.configs import read_config
from benchmarks.floor import serving as serving_floor
from benchmarks.grpc_floor import serving as serving_grpc_floor
from benchmarks.overhead import Comparison, Leg, compare
from benchmarks.recording import as_dict
from benchmarks.report import tables
from benchmarks.stack import Stack, StackError
from benchmarks.workloads import WORKLOADS
from tidegate.console import err, fail, print_json, print_table, progress

Result = TypeVar("Result")


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
    floor: bool,
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
        if floor:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-bench-")))
            for name, serving in (("http", serving_floor), ("grpc", serving_grpc_floor)):
                if name in wanted:
                    address = stack.enter_context(serving(folder / f"{name}-floor.log"))
                    legs[name].append(Leg("floor", f"{name}://{address}"))
        for name in wanted:
            if len(legs.get(name, [])) < 2:
                fail(f"{name}: both addresses are needed (--url and --triton, or --grpc-url and --triton-grpc)", code=2)
        comparisons = run_async(measure_legs(wanted, legs, numbers(concurrency), rounds, leg_s, seed))
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


async def measure_legs(
    protocols: list[str],
    legs: dict[str, list[Leg]],
    concurrencies: list[int],
    rounds: int,
    leg_s: float,
    seed: int,
    *,
    title: str = "overhead",
    model: str = "identity",
) -> list[Comparison]:
    """Compare ``legs`` of each protocol on the workload ``model``; ends the command if one cannot be reached."""
    workload = WORKLOADS[model](seed)
    results: list[Comparison] = []
    total = rounds * len(concurrencies) * sum(len(legs[protocol]) for protocol in protocols)
    with progress() as bar:
        task = bar.add_task(title, total=total)

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
                    f"{leg['max_ms']:,.0f}",
                    f"{leg['client_cpu_us']:.0f}",
                    leg["faults"],
                ]
            )
            if leg["fault"]:
                err.print(f"[yellow]{comparison.protocol} {comparison.concurrency}:[/] {leg['fault']}", highlight=False)
    columns = ["users", "leg", "req/s", "ratio", "p50 ms", "added ms", "max ms", "client µs", "faults"]
    print_table("The gateway beside Triton itself, model identity (medians over rounds, 95 % intervals)", columns, rows)


def tasks(where: Where, workloads: str, rounds: int, leg_s: float, seed: int, repository: Path, *, json_: bool) -> None:
    """``tidegate bench tasks``."""
    names = [name.strip() for name in workloads.split(",") if name.strip()]
    unknown = sorted(set(names) - {"sentiment", "embeddings", "embeddings-int8", "imagenet"})
    if unknown:
        fail(
            f"no ceiling for {', '.join(unknown)}: there is one for sentiment, embeddings, embeddings-int8, imagenet",
            code=2,
        )
    results: list[ceilings.TaskComparison] = []
    with ExitStack() as stack:
        url, key = where.gateway, where.key
        if url is None:
            found = start(stack, names, repository).addresses
            url, key = found.gateway, found.key
        for name in names:
            try:
                results.append(
                    run_async(
                        ceilings.compare(
                            name, url, key, repository, seed=seed, rounds=rounds, leg_s=leg_s,
                            say=lambda text: err.print(f"  {text}", highlight=False),
                        )
                    )
                )  # fmt: skip
            except (ceilings.CeilingError, OSError) as error:
                fail(f"{name}: {error}")
    if json_:
        print_json(as_dict(results))
        return
    rows = [
        [
            item.workload, item.users, f"{item.gateway.value:,.1f}", f"{item.ceiling.value:,.1f}", item.ratio,
            f"{item.way['sessions']}x{item.way['threads']} threads, batch {item.way['batch']}", item.faults,
        ]
        for item in results
    ]  # fmt: skip
    columns = ["task", "users", "gateway/s", "ceiling/s", "ratio", "ceiling's way", "faults"]
    print_table("Task calls beside one process with ideal batches (95 % intervals)", columns, rows)
    for item in results:
        if item.fault:
            err.print(f"[yellow]{item.workload}:[/] {item.fault}", highlight=False)


def why(where: Where, model: str, seconds: float, *, json_: bool) -> None:
    """``tidegate bench why``."""
    url = where.gateway or (
        f"http://{where.triton.removeprefix('http://')}" if where.triton else "http://127.0.0.1:8080"
    )
    try:
        found = run_async(batching.watch(url, where.key, model, seconds))
    except LookupError as error:
        fail(str(error).strip("\"'"))
    if json_:
        print_json(as_dict(found))
        return
    statistics = found.statistics
    rows: list[list[Any]] = [
        [
            "requests, inferences, executions",
            f"{statistics.requests}, {statistics.inferences}, {statistics.executions}",
        ],
        [
            "mean batch",
            "-" if found.mean_batch is None else f"{found.mean_batch:.2f} of at most {found.max_batch_size}",
        ],
        [
            "batch sizes (executions)",
            ", ".join(f"{size}: {count}" for size, count in sorted(statistics.batches.items())),
        ],
        ["ms per request", ", ".join(f"{name} {value:.2f}" for name, value in statistics.split_ms().items())],
        ["dynamic batching", f"{'on' if found.dynamic_batching else 'off'}, queue delay {found.queue_delay_us} µs"],
        ["instances", found.instances],
    ]
    print_table(f"{model}, {f'{seconds:g} s' if seconds else 'since it was loaded'}", ["", ""], rows)
    for finding in found.findings:
        err.print(f"- {finding}", highlight=False, markup=False)


def tune(
    model: str,
    slo: str,
    workload: str | None,
    users: str,
    seconds: float,
    out: Path | None,
    seed: int,
    repository: Path,
    *,
    json_: bool,
) -> None:
    """``tidegate bench tune``."""
    objective = parse_slo(slo)
    name = workload or model
    if name not in WORKLOADS:
        fail(f"no workload {name!r}; there are: {', '.join(WORKLOADS)}", code=2)
    if not (repository / model / "config.pbtxt").is_file():
        fail(f"{model} is not built in {repository} (tidegate models build {model})")
    limit = int(read_config(repository / model / "config.pbtxt").max_batch_size)
    settings = batching.candidates(limit, os.cpu_count() or 1)
    folder = out or Path("benchmarks") / "results" / f"tune-{model}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tidegate-tune-") as work:
        try:
            found = run_async(
                batching.tune(
                    model, name, repository, objective, settings, work=Path(work), users=numbers(users),
                    seconds=seconds, seed=seed, say=lambda text: err.print(f"  {text}", highlight=False, markup=False),
                )
            )  # fmt: skip
        except StackError as error:
            fail(str(error))
    (folder / "evidence.json").write_text(json.dumps(as_dict(found), indent=1))
    if found.config is not None:
        (folder / "config.pbtxt").write_text(found.config)
    if found.winner is not None:
        (folder / "recipe.yaml").write_bytes(msgspec.yaml.encode(found.winner.setting.recipe()))
    if json_:
        print_json(as_dict(found))
        return
    rows = [
        [
            trial.setting, f"{trial.best:,.1f}", trial.users, tables.milliseconds(trial.latency_ms),
            "-" if trial.mean_batch is None else f"{trial.mean_batch:.1f}",
        ]
        for trial in found.trials
    ]  # fmt: skip
    print_table(f"{model} within {objective}", ["setting", "goodput/s", "users", "latency ms", "mean batch"], rows)
    if found.winner is None:
        err.print("nothing better was found than the configuration as it is", highlight=False)
    else:
        gain = found.winner.best / found.baseline.best - 1 if found.baseline.best else float("inf")
        err.print(f"better: {found.winner.setting}, {gain:+.0%}; {folder / 'config.pbtxt'}", highlight=False)
        err.print(f"to keep it, put {folder / 'recipe.yaml'} into model.yaml and build the model", highlight=False)


def parse_slo(text: str) -> suites.Slo:
    """``p95=50ms``; ends the command if it is anything else."""
    match = re.fullmatch(r"p(\d+(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)", text.strip())
    if match is None or not 0 < float(match[1]) < 100:
        fail(f"{text}: an objective such as p95=50ms is expected", code=2)
    return suites.Slo(float(match[2]) * (1000 if match[3] == "s" else 1), float(match[1]))
