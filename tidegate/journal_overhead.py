"""``tidegate bench journal``: what recording every call costs, by the same load with it on and off, in turns."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.bootstrap import Interval
from benchmarks.gateways import ServedGateway
from benchmarks.overhead import Comparison, Leg
from benchmarks.recording import as_dict
from benchmarks.stack import StackError
from tidegate.benching import measure_legs, numbers, run_async, start
from tidegate.console import err, fail, print_json, print_table

MODEL = "identity"
BOUND = 0.03
"""Of the throughput at most."""


def run(
    triton: str | None,
    protocols: str,
    concurrency: str,
    rounds: int,
    leg_s: float,
    seed: int,
    repository: Path,
    *,
    json_: bool,
) -> None:
    """One Triton, two gateways before it that differ in ``TIDEGATE_METERING`` only."""
    wanted = [name.strip() for name in protocols.split(",") if name.strip()]
    if not wanted or set(wanted) - {"http", "grpc"}:
        fail(f"{protocols}: http, grpc or both are expected", code=2)
    users = numbers(concurrency)
    with ExitStack() as stack:
        target = triton or start(stack, [MODEL], repository).addresses.triton_grpc
        try:
            off, on = (
                stack.enter_context(
                    ServedGateway(
                        target, MODEL, model_repository=repository, environment={"TIDEGATE_METERING": metering}
                    )
                )
                for metering in ("false", "true")
            )
        except StackError as error:
            fail(str(error))
        legs = {
            protocol: [
                Leg(name, gateway.url if protocol == "http" else gateway.grpc_url, gateway.key)
                for name, gateway in (("journal off", off), ("journal on", on))
            ]
            for protocol in wanted
        }
        comparisons = run_async(measure_legs(wanted, legs, users, rounds, leg_s, seed, title="journal"))
    if json_:
        print_json(as_dict([{**item.to_dict(), "overhead": overhead(item), "bound": BOUND} for item in comparisons]))
    else:
        _print(comparisons)


def overhead(comparison: Comparison) -> Interval:
    """Share of the throughput that the journal takes, from the ratio of neighbouring legs."""
    ratio = comparison.ratio(1)
    low = None if ratio.high is None else 1 - ratio.high
    high = None if ratio.low is None else 1 - ratio.low
    return Interval(1 - ratio.value, low, high, ratio.runs)


def _print(comparisons: list[Comparison]) -> None:
    rows = []
    for comparison in comparisons:
        off, on = comparison.to_dict()["legs"]
        cost = overhead(comparison)
        interval = "" if cost.low is None or cost.high is None else f" [{cost.low:.1%}, {cost.high:.1%}]"
        rows.append(
            [
                f"{comparison.protocol} {comparison.concurrency}", f"{off['throughput'].value:,.0f}",
                f"{on['throughput'].value:,.0f}", on["ratio"], f"{cost.value:.1%}{interval}", _verdict(cost),
                off["faults"] + on["faults"],
            ]
        )  # fmt: skip
        for leg in (off, on):
            if leg["fault"]:
                err.print(f"[yellow]{leg['name']}:[/] {leg['fault']}", highlight=False)
    columns = ["users", "off, req/s", "on, req/s", "ratio", "overhead", f"at most {BOUND:.0%}", "faults"]
    print_table(f"The journal on and off, model {MODEL} (medians over rounds, 95 % intervals)", columns, rows)


def _verdict(cost: Interval) -> str:
    if cost.low is None or cost.high is None:
        return "too few rounds"
    if cost.high <= BOUND:
        return "yes"
    return "no" if cost.low > BOUND else "not decided"
