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
from urllib.parse import urlsplit

import msgspec
import uvloop

from benchmarks import batching, cost, gpu, limits
from benchmarks import suite as suites
from benchmarks import tasks as ceilings
from benchmarks.bootstrap import Interval
from benchmarks.configs import read_config
from benchmarks.floor import serving as serving_floor
from benchmarks.gateways import ServedGateway
from benchmarks.grpc_floor import serving as serving_grpc_floor
from benchmarks.overhead import Comparison, Leg, compare
from benchmarks.recording import as_dict, sample_floor
from benchmarks.report import tables
from benchmarks.report import write as report
from benchmarks.stack import Stack, StackError
from benchmarks.workloads import WORKLOADS
from tidegate.console import err, fail, print_json, print_table, progress

Result = TypeVar("Result")
RESULTS = Path("benchmarks") / "results"
WRITTEN = ("evidence.json", "config.pbtxt", "recipe.yaml", "gateway.env")
"""What ``tune`` may leave in its folder."""


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


@dataclass(slots=True, frozen=True)
class OverheadOptions:
    """Options of ``tidegate bench overhead``."""

    where: Where
    protocols: str
    concurrency: str
    rounds: int
    leg_s: float
    seed: int
    repository: Path
    floor: bool
    bare: bool | None
    """None: where the stack is started here."""
    json_: bool


def overhead(options: OverheadOptions) -> None:
    """``tidegate bench overhead``."""
    where, repository = options.where, options.repository
    wanted = [name.strip() for name in options.protocols.split(",") if name.strip()]
    with ExitStack() as stack:
        roots: tuple[int, ...] = ()
        bare = bool(options.bare)
        if where.gateway is None and where.gateway_grpc is None:
            started = start(stack, ["identity"], repository)
            try:
                limits.impose(started)
            except StackError as error:
                fail(str(error))
            found, roots, bare = started.addresses, (started.pid,), options.bare is not False
            where = Where(found.gateway, found.gateway_grpc, found.triton, found.triton_grpc, found.key, where.third)
        legs = {
            "http": _legs(where.triton, where.gateway, where.key, "http://", roots),
            "grpc": _legs(where.triton_grpc, where.gateway_grpc, where.key, "grpc://", roots),
        }
        if bare:
            gateway = _bare(stack, where, repository)
            pids = () if gateway.pid is None else (gateway.pid,)
            legs["http"].append(Leg("bare", gateway.url, gateway.key, roots=(*roots, *pids)))
            legs["grpc"].append(Leg("bare", gateway.grpc_url, gateway.key, roots=(*roots, *pids)))
        if where.third is not None:
            legs["http"].append(Leg("third", _full(where.third, "http://"), where.key))
        if options.floor:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-bench-")))
            for name, serving in (("http", serving_floor), ("grpc", serving_grpc_floor)):
                if name in wanted:
                    address = stack.enter_context(serving(folder / f"{name}-floor.log"))
                    legs[name].append(Leg("floor", f"{name}://{address}"))
        for name in wanted:
            if not {"triton", "gateway"} <= {leg.name for leg in legs.get(name, [])}:
                fail(f"{name}: both addresses are needed (--url and --triton, or --grpc-url and --triton-grpc)", code=2)
        comparisons = run_async(
            measure_legs(wanted, legs, numbers(options.concurrency), options.rounds, options.leg_s, options.seed)
        )
    if options.json_:
        print_json(as_dict([comparison.to_dict() for comparison in comparisons]))
    else:
        _print_overhead(comparisons)


def _legs(
    direct: str | None, gateway: str | None, key: str | None, scheme: str, roots: tuple[int, ...] = ()
) -> list[Leg]:
    if not direct or not gateway:
        return []
    return [
        Leg("triton", _full(direct, scheme), roots=roots), Leg("gateway", _full(gateway, scheme), key, roots=roots),
    ]  # fmt: skip


def _full(address: str, scheme: str) -> str:
    return address if "//" in address else scheme + address


def _bare(stack: ExitStack, where: Where, repository: Path) -> ServedGateway:
    """A gateway before the same Triton that writes no usage records and whose keys have no limits."""
    if not where.triton or not where.triton_grpc:
        fail("the bare gateway needs both of Triton's addresses (--triton, --triton-grpc)", code=2)
    grpc, http = (urlsplit(_full(address, "http://")) for address in (where.triton_grpc, where.triton))
    triton = f"{grpc.hostname}:{grpc.port}/{http.port}"
    try:
        return stack.enter_context(
            ServedGateway(
                triton, "identity", model_repository=repository, environment={"TIDEGATE_METERING": "false"}
            )
        )  # fmt: skip
    except StackError as error:
        fail(str(error))


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
                    leg["added_p99_ms"] or "",
                    f"{leg['max_ms']:,.0f}",
                    ", ".join(f"{name} {used.value:.0f}" for name, used in _parts(leg["cpu_us"])),
                    leg["faults"],
                ]
            )
            if leg["fault"]:
                err.print(f"[yellow]{comparison.protocol} {comparison.concurrency}:[/] {leg['fault']}", highlight=False)
    columns = [
        "users", "leg", "req/s", "ratio", "p50 ms", "added p50", "added p99", "max ms", "CPU µs per request", "faults",
    ]  # fmt: skip
    print_table("The gateway beside Triton itself, model identity (medians over rounds, 95 % intervals)", columns, rows)


def _parts(spent: dict[str, Interval]) -> list[tuple[str, Interval]]:
    """Components that did something, the dearest first."""
    found = [(name, used) for name, used in spent.items() if used.value >= 1]
    return sorted(found, key=lambda item: -item[1].value)


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


@dataclass(slots=True, frozen=True)
class TuneOptions:
    """Options of ``tidegate bench tune``."""

    model: str
    slo: str
    workload: str | None
    users: str
    instances: str | None
    delays_us: str
    seconds: float
    confirm: int
    out: Path | None
    seed: int
    repository: Path
    json_: bool


def tune(options: TuneOptions) -> None:
    """``tidegate bench tune``."""
    model, objective = options.model, parse_slo(options.slo)
    config = read_config(_built(model, options.repository))
    workload = options.workload or (model if model in WORKLOADS else None)
    _check_tunable(model, config, workload, options.seed)
    instances = numbers(options.instances) if options.instances else [1, os.cpu_count() or 1]
    settings = batching.candidates(config.max_batch_size, instances, numbers(options.delays_us))
    folder = options.out or RESULTS / f"tune-{model}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:  # an old winner must not stand beside new evidence
        (folder / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="tidegate-tune-") as work:
        try:
            found = run_async(
                batching.tune(
                    model, workload, options.repository, objective, settings, work=Path(work),
                    users=numbers(options.users), seconds=options.seconds, seed=options.seed,
                    confirm=options.confirm, say=_say,
                )
            )  # fmt: skip
        except StackError as error:
            fail(str(error))
    write_tuning(found, folder)
    if options.json_:
        print_json(as_dict(found))
    else:
        _print_tuning(found, folder)


def _check_tunable(model: str, config: Any, workload: str | None, seed: int) -> None:
    """Ends the command if there is nothing to tune, or nothing to load the model with."""
    if workload is not None and workload not in WORKLOADS:
        fail(f"no workload {workload!r}; there are: {', '.join(WORKLOADS)}", code=2)
    if config.max_batch_size == 0:
        fail(f"{model} has max_batch_size 0: Triton cannot batch it, and there is nothing to tune")
    if workload is None:
        texts = batching.texts(config)
        if texts:
            fail(f"{', '.join(texts)} of {model} takes text: say what to load it with (--workload)", code=2)
        return
    try:
        batching.load_for(model, workload, seed)
    except ValueError as error:
        fail(str(error), code=2)


def write_tuning(found: batching.Tuning, folder: Path) -> None:
    """The evidence, and the winner if there is one: its configuration, recipe and settings of the gateway."""
    (folder / "evidence.json").write_text(json.dumps(as_dict(found), indent=1))
    if found.config is None or found.winner is None:
        return
    setting = found.winner.setting
    (folder / "config.pbtxt").write_text(found.config)
    (folder / "recipe.yaml").write_bytes(msgspec.yaml.encode(setting.recipe()))
    if setting.environment():
        (folder / "gateway.env").write_text("".join(f"{key}={value}\n" for key, value in setting.environment().items()))


def _print_tuning(found: batching.Tuning, folder: Path) -> None:
    rows = [
        [
            trial.setting, f"{trial.best:,.1f}", trial.users, tables.milliseconds(trial.latency_ms),
            "-" if trial.mean_batch is None else f"{trial.mean_batch:.1f}",
        ]
        for trial in found.trials
    ]  # fmt: skip
    columns = ["setting", "goodput/s", "users", "latency ms", "mean batch"]
    print_table(f"{found.model} within {found.slo}", columns, rows)
    if all(trial.latency_ms is None for trial in found.trials):
        needed = sample_floor(found.slo.percentile)
        err.print(f"p{found.slo.percentile:g} needs {needed} samples of a trial: measure longer (--seconds)")
    if found.winner is None:
        err.print("nothing better was found than the configuration as it is", highlight=False)
        return
    gain = found.winner.best / found.baseline.best - 1 if found.baseline.best else float("inf")
    err.print(f"better: {found.winner.setting}, {gain:+.0%}; {folder / 'config.pbtxt'}", highlight=False, markup=False)
    err.print(f"to keep it, put {folder / 'recipe.yaml'} into model.yaml and build the model", highlight=False)
    if found.winner.setting.environment():
        err.print(f"{folder / 'gateway.env'} is for the whole gateway, so for every model", highlight=False)


def on_gpu(
    models: str, out: Path | None, seed: int, repository: Path, machine: str, *, quick: bool, json_: bool
) -> None:
    """``tidegate bench gpu``."""
    names = [name.strip() for name in models.split(",") if name.strip()]
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown or not names:
        fail(f"{models}: no workload {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}", code=2)
    for name in names:
        _built(name, repository)
    try:
        priced = cost.machine(cost.read_prices(), machine)
        found = gpu.require(*gpu.backends(repository, names))
    except cost.PricesError as error:
        fail(str(error), code=2)
    except gpu.NoGpuError as error:
        fail(str(error))
    err.print(f"on {', '.join(found)}", highlight=False)
    folder = out or RESULTS / ("local" if quick else "") / "gpu"
    with tempfile.TemporaryDirectory(prefix="tidegate-gpu-") as copies:
        try:
            results = run_async(
                gpu.measure(
                    names, gpu.repository(repository, names, Path(copies)), folder, seed, priced,
                    seconds=3.0 if quick else 10.0, say=_say,
                )
            )  # fmt: skip
        except StackError as error:
            fail(str(error))
    page = report.write(results, folder)
    if json_:
        print_json(as_dict(results))
    err.print(f"report: {page}", highlight=False)
    if not any(item.valid for item in results.measurements):
        reasons = dict.fromkeys(reason for item in results.measurements for reason in item.reasons)
        fail("; ".join([*reasons, *results.skipped]) or "nothing could be measured")


def _built(model: str, repository: Path) -> Path:
    """The model's configuration; ends the command if there is none."""
    path = repository / model / "config.pbtxt"
    if not path.is_file():
        fail(f"{model} is not built in {repository} (tidegate models build {model})")
    return path


def _say(text: str) -> None:
    err.print(f"  {text}", highlight=False, markup=False)


def parse_slo(text: str) -> suites.Slo:
    """``p95=50ms``; ends the command if it is anything else."""
    match = re.fullmatch(r"p(\d+(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)", text.strip())
    if match is None or not 0 < float(match[1]) < 100:
        fail(f"{text}: an objective such as p95=50ms is expected", code=2)
    return suites.Slo(float(match[2]) * (1000 if match[3] == "s" else 1), float(match[1]))
