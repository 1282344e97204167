"""``tidegate bench journal``: what recording every call costs, by the same load with it on and off, in turns."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.bootstrap import Interval
from benchmarks.gateways import ServedGateway
from benchmarks.overhead import Comparison, Leg
from benchmarks.recording import as_dict
from benchmarks.stack import Addresses, StackError
from benchmarks.workloads import WORKLOADS
from tidegate.benching import measure_legs, numbers, run_async, start
from tidegate.console import err, fail, print_json, print_table

RAW = "identity"
"""The one workload that travels over gRPC too."""
BOUND = 0.03
"""Of the throughput at most."""


def run(
    triton: str | None,
    models: str,
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
    chosen = _known(models, WORKLOADS, "workloads")
    wanted = _known(protocols, ("http", "grpc"), "protocols")
    users = numbers(concurrency)
    served = sorted({WORKLOADS[name](seed).model for name in chosen})
    measured: list[tuple[str, Comparison]] = []
    with ExitStack() as stack:
        target = triton or upstream(start(stack, served, repository).addresses)
        try:
            off, on = (
                stack.enter_context(
                    ServedGateway(
                        target, ",".join(served), model_repository=repository,
                        environment={"TIDEGATE_METERING": metering},
                    )
                )
                for metering in ("false", "true")
            )  # fmt: skip
        except StackError as error:
            fail(str(error))
        legs = {
            protocol: [
                Leg(name, gateway.url if protocol == "http" else gateway.grpc_url, gateway.key, gateway.pid)
                for name, gateway in (("journal off", off), ("journal on", on))
            ]
            for protocol in wanted
        }
        for name in chosen:
            over = [protocol for protocol in wanted if protocol == "http" or name == RAW]
            found = run_async(measure_legs(over, legs, users, rounds, leg_s, seed, title="journal", model=name))
            measured += [(name, comparison) for comparison in found]
    if json_:
        print_json(
            as_dict(
                [
                    {"workload": name, **item.to_dict(), "overhead": overhead(item), "bound": BOUND}
                    for name, item in measured
                ]
            )
        )
    else:
        _print(measured)


def upstream(addresses: Addresses) -> str:
    """A stack's Triton as ``TIDEGATE_TRITON_URLS`` has it, inferring over HTTP as ``tidegate up`` does."""
    grpc, http = urlsplit(addresses.triton_grpc), urlsplit(addresses.triton)
    return f"{grpc.hostname}:{grpc.port}/{http.port}"


def overhead(comparison: Comparison) -> Interval:
    """Share of the throughput that the journal takes, from the ratio of neighbouring legs."""
    ratio = comparison.ratio(1)
    low = None if ratio.high is None else 1 - ratio.high
    high = None if ratio.low is None else 1 - ratio.low
    return Interval(1 - ratio.value, low, high, ratio.runs)


def _known(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names in ``text``, all of them in ``known``; ends the command if one is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    expected = list(known)
    if not names or set(names) - set(expected):
        fail(f"{text}: {what} are {', '.join(expected)}", code=2)
    return names


def _print(measured: list[tuple[str, Comparison]]) -> None:
    rows = []
    for name, comparison in measured:
        off, on = comparison.to_dict()["legs"]
        cost = overhead(comparison)
        interval = "" if cost.low is None or cost.high is None else f" [{cost.low:.1%}, {cost.high:.1%}]"
        rows.append(
            [
                f"{name} {comparison.protocol} {comparison.concurrency}", f"{off['throughput'].value:,.0f}",
                f"{on['throughput'].value:,.0f}", f"{cost.value:.1%}{interval}", _verdict(cost),
                f"{_microseconds(off)} → {_microseconds(on)}",
            ]
        )  # fmt: skip
        for leg in (off, on):
            if leg["fault"]:
                err.print(f"[yellow]{name}, {leg['name']}:[/] {leg['faults']} × {leg['fault']}", highlight=False)
    columns = ["users", "off/s", "on/s", "overhead", f"≤ {BOUND:.0%}", "CPU µs"]
    title = "The journal off and on: answers, and the gateway's processor time for each (medians, 95 % intervals)"
    print_table(title, columns, rows)


def _microseconds(leg: dict[str, Any]) -> str:
    used: Interval | None = leg["server_cpu_us"]
    return "-" if used is None else f"{used.value:.0f}"


def _verdict(cost: Interval) -> str:
    if cost.low is None or cost.high is None:
        return "too few rounds"
    if cost.high <= BOUND:
        return "yes"
    return "no" if cost.low > BOUND else "not decided"
