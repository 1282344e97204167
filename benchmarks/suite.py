"""Suites: what is run, as YAML in ``benchmarks/suites`` or anywhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from benchmarks.workloads import WORKLOADS

Kind = Literal[
    "single_stream", "closed_sweep", "server", "offline", "burst", "soak", "overload", "mixed_tenants", "cancellations",
    "cold_start", "noise_floor",
]  # fmt: skip


Number = TypeVar("Number", int, float)


Engine = Literal["asyncio", "locust"]


class SuiteError(Exception):
    """A suite that cannot be read; the message names file and field."""


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``percentile`` of all requests within ``ms`` of their intended time."""

    ms: float
    percentile: float = 95.0

    def __str__(self) -> str:
        return f"p{self.percentile:g} <= {self.ms:g} ms"


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of load on one workload."""

    kind: Kind
    workload: str
    protocol: Literal["http", "grpc"] = "http"
    duration_s: float = 20.0
    warmup_s: float = 2.0
    slo: Slo = Slo(100.0)
    users: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Closed sweep; offline and noise floor take the last one."""
    rate: float | None = None
    """Requests a second; None derives it from the peak that a short closed loop finds."""
    engine: Engine = "asyncio"
    """What makes the load of closed loops; open loops are asyncio's alone."""
    factors: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)
    """Overload: multiples of the peak."""
    max_lag_ms: float | None = None
    """Schedule lag (p99) beyond which an open-loop run is INVALID; default: 5 % of the objective, at least 1 ms.
    (Lag is part of the latency here; where generator and system share cores it cannot be below a millisecond.)"""

    @property
    def lag_limit_ms(self) -> float:
        """``max_lag_ms``, or its default."""
        return self.max_lag_ms if self.max_lag_ms is not None else max(1.0, 0.05 * self.slo.ms)


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One configuration of the stack; each variant gets a stack of its own."""

    name: str = ""
    environment: dict[str, str] = {}
    """Settings of the gateway."""
    batching: bool = True
    """Triton's dynamic batcher."""
    instances: int | None = None
    queue_delay_us: int | None = None


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A suite file."""

    title: str
    scenarios: tuple[Scenario, ...]
    runs: int = 1
    """Independent repetitions, each in shuffled order; intervals need three, headlines five."""
    variants: tuple[Variant, ...] = (Variant(),)
    name: str = ""

    @property
    def models(self) -> list[str]:
        """What the stack must serve."""
        return sorted({str(getattr(WORKLOADS[scenario.workload], "model", "")) for scenario in self.scenarios})


def names() -> list[str]:
    """The suites that come with the package."""
    folder = files("benchmarks").joinpath("suites")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(name: str) -> Suite:
    """A suite by name, or from a file. Raises :class:`SuiteError`."""
    path = Path(name)
    try:
        if path.suffix == ".yaml":
            data = path.read_bytes()
        elif name in names():
            data = (files("benchmarks") / "suites" / f"{name}.yaml").read_bytes()
        else:
            raise SuiteError(f"no suite {name!r}; there are: {', '.join(names())} (or give a .yaml file)")
        suite = msgspec.yaml.decode(data, type=Suite)
    except (OSError, msgspec.MsgspecError) as error:
        raise SuiteError(f"{name}: {error}") from error
    if any(scenario.engine != "asyncio" and scenario.kind != "closed_sweep" for scenario in suite.scenarios):
        raise SuiteError(f"{name}: engine: only closed_sweep can be made by Locust")
    unknown = sorted({scenario.workload for scenario in suite.scenarios} - set(WORKLOADS))
    if unknown:
        raise SuiteError(f"{name}: no workload {', '.join(unknown)}; there are: {', '.join(WORKLOADS)}")
    return msgspec.structs.replace(suite, name=path.stem)


def shortened(suite: Suite, *, duration_s: float | None = None, runs: int | None = None, quick: bool = False) -> Suite:
    """The same suite with other durations and repetitions; ``quick`` means 3 s each, one run, and only
    the fewest and the most users.
    """
    if quick:
        duration_s = duration_s or 3.0
    runs = runs or (1 if quick else suite.runs)
    suite = msgspec.structs.replace(suite, runs=runs)
    if duration_s is None:
        return suite
    scenarios = tuple(
        msgspec.structs.replace(
            scenario,
            duration_s=duration_s,
            warmup_s=min(scenario.warmup_s, duration_s / 4),
            users=_ends(scenario.users) if quick else scenario.users,
            factors=_ends(scenario.factors) if quick else scenario.factors,
        )
        for scenario in suite.scenarios
    )
    return msgspec.structs.replace(suite, scenarios=scenarios)


def with_engine(suite: Suite, engine: Engine) -> Suite:
    """The same suite, its closed sweeps made by ``engine``."""
    scenarios = tuple(
        msgspec.structs.replace(scenario, engine=engine) if scenario.kind == "closed_sweep" else scenario
        for scenario in suite.scenarios
    )
    return msgspec.structs.replace(suite, scenarios=scenarios)


def _ends(values: tuple[Number, ...]) -> tuple[Number, ...]:
    return (values[0], values[-1]) if len(values) > 2 else values
