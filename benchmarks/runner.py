"""Runs a suite: starts stacks where none is given, repeats in shuffled order, and keeps everything."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import calibration, configs, environment
from benchmarks.calibration import Calibration
from benchmarks.cost import Machine
from benchmarks.measurement import Measurement
from benchmarks.observe import Observer
from benchmarks.points import Point, grouped, summary
from benchmarks.recording import Recording, as_dict, histogram_of, write_hgrm
from benchmarks.repeatability import disturbances
from benchmarks.scenarios import Bench, ScenarioError, Target
from benchmarks.stack import Stack, StackError
from benchmarks.suite import Suite, Variant

TENANTS = 4
OPEN_FILES = 8192
"""Connections of an overload, in the generator and in the stack that inherits the limit."""


@dataclass(slots=True)
class Plan:
    """What to run against what."""

    suite: Suite
    out: Path
    seed: int
    machine: Machine
    url: str | None = None
    grpc_url: str | None = None
    key: str | None = None
    tenant_keys: list[str] = field(default_factory=list)
    model_repository: Path = Path("model_repository")
    calibrate: bool = True
    """Load a null server afterwards, to know how near the results came to the generator's own limit."""
    say: Callable[[str], None] = lambda _text: None


class Results(msgspec.Struct):
    """``report.json``."""

    suite: Suite
    seed: int
    machine: Machine
    environment: dict[str, Any]
    noise: list[str]
    measurements: list[Measurement]
    skipped: list[str]
    """Scenarios that could not run here, and why."""
    calibration: Calibration | None = None
    id: str = ""
    """Of this run and no other."""
    config_hash: str = ""
    """SHA-256 of suite, seed and machine: equal where the same was asked for."""
    points: list[Point] = []
    """Repetitions of each point summed up: histograms merged, counts added, intervals over runs."""


async def run(plan: Plan) -> Results:
    """Everything in the suite. Raises :class:`benchmarks.stack.StackError` if a stack does not start."""
    captured = environment.capture(plan.url)
    environment.allow_open_files(OPEN_FILES)
    samples = plan.out / "samples"
    shutil.rmtree(samples, ignore_errors=True)  # those of an earlier run belong to other numbers
    samples.mkdir(parents=True)
    results = Results(
        plan.suite, plan.seed, plan.machine, captured, [], [], [], id=uuid.uuid4().hex, config_hash=_hash(plan)
    )
    order = random.Random(plan.seed)
    total = plan.suite.runs * len(plan.suite.variants) * len(plan.suite.scenarios)
    steps = itertools.count(1)
    for number in range(plan.suite.runs):
        variants = list(plan.suite.variants)
        order.shuffle(variants)
        for variant in variants:
            with _target(plan, variant, number) as target:
                target.keep = _keeper(samples, f"{number}-{variant.name}" if variant.name else str(number))
                await _scenarios(plan, target, variant, number, order, results, lambda: f"[{next(steps)}/{total}]")
    results.noise = [*environment.noise(captured, environment.capture()), *disturbances(results.measurements)]
    await _calibrate(plan, results)
    results.points = [summary(group) for group in grouped(results.measurements).values()]
    return results


def _hash(plan: Plan) -> str:
    asked = msgspec.json.encode([plan.suite, plan.seed, plan.machine], order="sorted")
    return hashlib.sha256(asked).hexdigest()


async def _calibrate(plan: Plan, results: Results) -> None:
    highest = calibration.highest_rate(results.measurements)
    if not plan.calibrate or not highest:
        return
    try:
        results.calibration = await calibration.calibrate(highest, plan.seed)
    except OSError as error:
        results.skipped.append(f"calibration: {error}")
        return
    calibration.mark(results.measurements, results.calibration)
    plan.say(calibration.sentence(results.calibration))


async def _scenarios(
    plan: Plan,
    target: Target,
    variant: Variant,
    number: int,
    order: random.Random,
    results: Results,
    step: Callable[[], str],
) -> None:
    scenarios = list(plan.suite.scenarios)
    order.shuffle(scenarios)
    scenarios.sort(key=lambda scenario: scenario.kind != "cold_start")  # only the first is cold
    bench = Bench(target)
    for scenario in scenarios:
        plan.say(f"{step()} {scenario.kind} {scenario.workload} {scenario.protocol}")
        try:
            measurements = await bench.run(scenario)
        except (ScenarioError, OSError) as error:
            reason = f"{scenario.kind} {scenario.workload} {scenario.protocol}: {error}"
            plan.say(f"skipped: {reason}")
            if reason not in results.skipped:
                results.skipped.append(reason)
            continue
        for measurement in measurements:
            measurement.run, measurement.variant = number, variant.name
        results.measurements.extend(measurements)


@contextlib.contextmanager
def _target(plan: Plan, variant: Variant, number: int) -> Iterator[Target]:
    if plan.url is not None:
        observer = Observer(plan.url, plan.key)
        yield Target(
            plan.url, plan.grpc_url, plan.key, observer, plan.seed, tenant_keys=list(plan.tenant_keys), say=plan.say
        )  # fmt: skip
        return
    plan.say(f"starting a stack{f' ({variant.name})' if variant.name else ''}, run {number + 1} of {plan.suite.runs}")
    with configs.repository(plan.model_repository, plan.suite.models, variant) as folder:
        stack = Stack(plan.suite.models, model_repository=folder, environment=variant.environment)
        with stack:
            where = stack.addresses
            observer = Observer(where.gateway, where.key)
            others = _tenants(stack) if _wants_tenants(plan.suite) else []
            yield Target(
                where.gateway, where.gateway_grpc, where.key, observer, plan.seed, stack.pid, stack.started_in_s,
                [where.key or "", *others], [Observer(where.gateway, key) for key in others], say=plan.say,
            )  # fmt: skip


def _wants_tenants(suite: Suite) -> bool:
    return any(scenario.kind == "mixed_tenants" for scenario in suite.scenarios)


def _tenants(stack: Stack) -> list[str]:
    """Keys of a project each, made by the operator's own command: capacity is shared among projects."""
    keys = []
    for number in range(1, TENANTS):
        file = stack.data_dir / f"tenant-{number}.key"
        command = [
            sys.executable, "-m", "tidegate", "keys", "create", "--project", f"tenant-{number}", "--scope", "infer",
            "--scope", "usage:read", "--label", f"tenant {number}", "--write", str(file),
        ]  # fmt: skip
        settings = {**os.environ, "TIDEGATE_DATA_DIR": str(stack.data_dir)}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        if done.returncode:
            raise StackError(f"keys create: {done.stderr.strip()}")
        keys.append(file.read_text().strip())
    return keys


def _keeper(folder: Path, prefix: str) -> Callable[[str, Recording], None]:
    def keep(name: str, recording: Recording) -> None:
        safe = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{prefix}-{name}")
        recording.write_jsonl(folder / f"{safe}.jsonl.gz")
        if len(recording):
            write_hgrm(histogram_of(recording.latencies_us()), folder / f"{safe}.hgrm")

    return keep


def write(results: Results, folder: Path) -> None:
    """``report.json``."""
    (folder / "report.json").write_text(json.dumps(as_dict(results), indent=1, ensure_ascii=False), encoding="utf-8")


def load(folder: Path) -> Results:
    """A report's data again. Raises ``ValueError`` or ``OSError``."""
    path = folder / "report.json" if folder.is_dir() else folder
    return msgspec.json.decode(path.read_bytes(), type=Results)
