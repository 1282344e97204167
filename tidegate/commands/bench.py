"""``tidegate bench``: throughput, latency and cost, measured honestly (docs/06-benchmarks.md)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tidegate.console import JsonFlag, fail

app = typer.Typer(help="Throughput, latency and cost, measured honestly.", no_args_is_help=True)

Url = Annotated[str | None, typer.Option(help="Gateway, http://host:port; default: a stack is started.")]
GrpcUrl = Annotated[str | None, typer.Option(help="The gateway's gRPC address, host:port.")]
Key = Annotated[str | None, typer.Option(help="API key.", envvar="TIDEGATE_KEY")]
Seed = Annotated[int, typer.Option(help="Seed of inputs and arrivals.")]
Repository = Annotated[Path, typer.Option(help="Folder of the models, for a stack that is started here.")]
REPOSITORY = Path("model_repository")
_REPORTS = "tidegate.bench_reports"


def _benching(module: str = "tidegate.benching") -> Any:
    """The implementation; one line if its libraries are not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        fail(f"the benchmark suite needs {error.name}: pip install 'tidegate[bench]'")


@app.command("run")
def run_suite(
    suite: Annotated[
        str, typer.Argument(help="quick, headline, models, tasks, dataplane, batching, locust, soak, or a .yaml file.")
    ] = "quick",
    url: Url = None,
    grpc_url: GrpcUrl = None,
    key: Key = None,
    tenant_key: Annotated[list[str] | None, typer.Option(help="Further keys for mixed tenants; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: benchmarks/results/<suite>.")] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds of each measurement.")] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Repetitions; intervals need three.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Afterwards load a server that does nothing.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="3 s each, one run, fewer points: a rehearsal.")] = False,
    engine: Annotated[
        Literal["asyncio", "locust"] | None,
        typer.Option(help="What makes the load of closed sweeps; default: as the suite says."),
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="Price list in place of the suite's own.")] = None,
    machine: Annotated[str, typer.Option(help="Machine of the price list that stands for this one.")] = "cpu-2",
    seed: Seed = 1,
    model_repository: Repository = REPOSITORY,
    json_: JsonFlag = False,
) -> None:
    """Run a suite and write its report: HTML with plots, Markdown, JSON and every sample.

    Example: tidegate bench run tasks --url http://127.0.0.1:8080 --key "$(cat .tidegate/demo.key)"
    """
    reports = _benching(_REPORTS)
    where = reports.Where(gateway=url, gateway_grpc=grpc_url, key=key)
    options = reports.RunOptions(
        suite=suite, where=where, tenant_keys=tuple(tenant_key or ()), out=out, duration=duration, runs=runs,
        quick=quick, calibrate=calibrate, prices=prices, machine=machine, seed=seed, repository=model_repository,
        json_=json_, engine=engine,
    )  # fmt: skip
    reports.run_suite(options)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a report, with its report.json.")],
) -> None:
    """Make a report's page with plots again from its data.

    Example: tidegate bench report benchmarks/results/headline
    """
    _benching(_REPORTS).html(folder)


@app.command()
def overhead(
    url: Url = None,
    grpc_url: GrpcUrl = None,
    key: Key = None,
    triton: Annotated[str | None, typer.Option(help="Triton's own HTTP address, host:port.")] = None,
    triton_grpc: Annotated[str | None, typer.Option(help="Triton's own gRPC address, host:port.")] = None,
    third: Annotated[str | None, typer.Option(help="A further HTTP leg, e.g. nginx before the same Triton.")] = None,
    protocols: Annotated[str, typer.Option(help="http, grpc or both, separated by a comma.")] = "http,grpc",
    concurrency: Annotated[str, typer.Option(help="Concurrencies, separated by commas.")] = "1,8,32,64",
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="A further leg: an HTTP or gRPC server that asks nobody.")
    ] = True,
    bare: Annotated[
        bool | None,
        typer.Option(
            "--bare/--no-bare",
            help="A further leg: a gateway without limits and usage records; default: where a stack is started.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every leg once.")] = 7,
    leg_seconds: Annotated[float, typer.Option(min=0.2, help="Seconds of one leg.")] = 3.0,
    seed: Seed = 1,
    model_repository: Repository = REPOSITORY,
    json_: JsonFlag = False,
) -> None:
    """Compare the gateway with Triton itself on `identity`: throughput, added latency, processor time of each part.

    Legs alternate within one run; intervals are 95 %, from resampling the rounds. A quarter of an hour with all legs.

    Example: tidegate bench overhead --concurrency 1,32 --rounds 5
    """
    benching = _benching()
    where = benching.Where(url, grpc_url, triton, triton_grpc, key, third)
    options = benching.OverheadOptions(
        where=where, protocols=protocols, concurrency=concurrency, rounds=rounds, leg_s=leg_seconds, seed=seed,
        repository=model_repository, floor=floor, bare=bare, json_=json_,
    )  # fmt: skip
    benching.overhead(options)


@app.command()
def tasks(
    url: Url = None,
    key: Key = None,
    workloads: Annotated[str, typer.Option(help="Tasks, separated by commas.")] = "embeddings,sentiment,imagenet",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures gateway and ceiling once.")] = 5,
    leg_seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of one leg.")] = 6.0,
    seed: Seed = 1,
    model_repository: Repository = REPOSITORY,
    json_: JsonFlag = False,
) -> None:
    """Compare task calls with the ceiling: the same work in one process with ideal batches.

    Example: tidegate bench tasks --workloads imagenet --rounds 3
    """
    benching = _benching()
    where = benching.Where(gateway=url, key=key)
    benching.tasks(where, workloads, rounds, leg_seconds, seed, model_repository, json_=json_)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Folder of a report.")],
    after: Annotated[Path, typer.Argument(help="Folder of another.")],
    json_: JsonFlag = False,
) -> None:
    """Say what changed between two reports, and whether it is more than noise.

    Example: tidegate bench compare benchmarks/results/old benchmarks/results/new
    """
    _benching(_REPORTS).compare_reports(before, after, json_=json_)


@app.command()
def why(
    model: Annotated[str, typer.Argument(help="Model that is loaded.")],
    url: Annotated[str | None, typer.Option(help="Gateway; default: http://127.0.0.1:8080.")] = None,
    key: Key = None,
    triton: Annotated[str | None, typer.Option(help="Ask this Triton in place of a gateway, host:port.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Watch so long; 0: everything since the model was loaded.")
    ] = 0.0,
    json_: JsonFlag = False,
) -> None:
    """Explain from Triton's statistics why a model batches, or does not.

    Example: tidegate bench why embeddings --key "$(cat .tidegate/demo.key)" --seconds 10
    """
    benching = _benching()
    benching.why(benching.Where(gateway=url, key=key, triton=triton), model, seconds, json_=json_)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="Model to tune.")],
    slo: Annotated[str, typer.Option(help="Objective that goodput counts within.")] = "p95=50ms",
    workload: Annotated[
        str | None, typer.Option(help="Workload to load it with; default: the model's own, else random tensors.")
    ] = None,
    users: Annotated[str, typer.Option(help="Concurrencies to try, separated by commas.")] = "4,16,48",
    instances: Annotated[
        str | None, typer.Option(help="Numbers of instances to try; default: one, and one a core.")
    ] = None,
    delays: Annotated[str, typer.Option(help="Queue delays to try, microseconds.")] = "0,500,2000,5000",
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each trial.")] = 5.0,
    confirm: Annotated[
        int, typer.Option(min=2, help="How often the best is measured, in turns with the configuration as it is.")
    ] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for the evidence and the winning config.pbtxt.")] = None,
    seed: Seed = 1,
    model_repository: Repository = REPOSITORY,
    json_: JsonFlag = False,
) -> None:
    """Search queue delay, preferred batch sizes, instances and coalescing; write the winner with its evidence.

    Each setting gets a stack of its own: with all of them about ten minutes.

    Example: tidegate bench tune sentiment --slo p95=100ms
    """
    benching = _benching()
    options = benching.TuneOptions(
        model=model, slo=slo, workload=workload, users=users, instances=instances, delays_us=delays, seconds=seconds,
        confirm=confirm, out=out, seed=seed, repository=model_repository, json_=json_,
    )  # fmt: skip
    benching.tune(options)


@app.command()
def gpu(
    models: Annotated[str, typer.Option(help="Models, separated by commas.")] = "identity,embeddings,imagenet",
    out: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    machine: Annotated[str, typer.Option(help="Machine of the price list that stands for this one.")] = "gpu-1",
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal.")] = False,
    seed: Seed = 1,
    model_repository: Repository = REPOSITORY,
    json_: JsonFlag = False,
) -> None:
    """Measure models on a CUDA GPU through the embedded backends.

    The libraries of the models' backends must be able to use it. What leaves the GPU idle is INVALID.

    Example: tidegate bench gpu --models embeddings
    """
    _benching().on_gpu(models, out, seed, model_repository, machine, quick=quick, json_=json_)


@app.command()
def scale(
    keys: Annotated[str, typer.Option(help="Keys in the small and in the large database.")] = "1000,1000000",
    rows: Annotated[str, typer.Option(help="Usage records in them.")] = "100000,10000000",
    rounds: Annotated[int, typer.Option(min=3, help="Rounds; each asks both databases everything.")] = 50,
    folder: Annotated[
        Path | None, typer.Option(help="Where the databases are made, and removed; default: the system's for such.")
    ] = None,
    seed: Seed = 1,
    json_: JsonFlag = False,
) -> None:
    """Time key checks and usage summaries with few and with many keys and records; 6 GiB of disk by default.

    Exit code 3 if one of them takes more than twice as long in the large database.

    Example: tidegate bench scale --keys 1000,100000 --rows 10000,1000000
    """
    _benching("tidegate.scale").run(keys, rows, rounds, folder, seed, json_=json_)


@app.command()
def journal(
    triton: Annotated[
        str | None, typer.Option(help="Triton's host:grpc_port/http_port; default: a stack is started.")
    ] = None,
    models: Annotated[str, typer.Option(help="Workloads to measure with, separated by commas.")] = "identity,sentiment",
    protocols: Annotated[str, typer.Option(help="http, grpc or both, separated by a comma; tasks: http.")] = "http",
    concurrency: Annotated[str, typer.Option(help="Concurrencies, separated by commas.")] = "32",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures on and off once.")] = 15,
    leg_seconds: Annotated[float, typer.Option(min=0.2, help="Seconds of one leg.")] = 3.0,
    seed: Seed = 1,
    model_repository: Repository = REPOSITORY,
    json_: JsonFlag = False,
) -> None:
    """Measure what recording every call costs: throughput with the journal on and off, in turns.

    Two gateways before one Triton, which differ in nothing else. `identity` computes nothing: there the journal
    costs its largest share.

    Example: tidegate bench journal --rounds 30
    """
    _benching("tidegate.journal_overhead").run(
        triton, models, protocols, concurrency, rounds, leg_seconds, seed, model_repository, json_=json_
    )
