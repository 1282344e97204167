"""Why a model batches or does not, from Triton's statistics; and a search for better settings."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tritonclient.grpc import model_config_pb2

from benchmarks.client import connect
from benchmarks.closedloop import ClosedLoop, ClosedRun
from benchmarks.configs import changed, copy, read_config, rewrite
from benchmarks.observe import Observer, Statistics
from benchmarks.recording import Outcome, sample_floor
from benchmarks.stack import Stack
from benchmarks.suite import Slo
from benchmarks.workloads import WORKLOADS, RawModel, Workload

NOISE = 0.05


class Explanation(msgspec.Struct, frozen=True):
    """What the counters of one model say."""

    model: str
    statistics: Statistics
    mean_batch: float | None
    max_batch_size: int
    dynamic_batching: bool
    instances: int
    queue_delay_us: int
    shares: dict[str, float]
    """Share of a request's time in Triton by stage."""
    findings: list[str]


def explain(model: str, statistics: Statistics, config: dict[str, Any]) -> Explanation:
    """From counters (a difference of two, or everything since the load) and Triton's configuration."""
    batching = config.get("dynamic_batching")
    delay = int((batching or {}).get("max_queue_delay_microseconds", 0))
    limit = int(config.get("max_batch_size", 0))
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", [])) or 1
    split = statistics.split_ms()
    total = sum(split.values()) or 1.0
    shares = {name: value / total for name, value in split.items()}
    return Explanation(
        model, statistics, statistics.mean_batch, limit, batching is not None, instances, delay, shares,
        [*_findings(statistics, limit, batching is not None, instances, delay, split), *_warnings(batching or {})],
    )  # fmt: skip


def _warnings(batching: dict[str, Any]) -> list[str]:
    """Settings that make Triton's batcher wait for an idle instance instead of prefetching."""
    policy = batching.get("default_queue_policy") or {}
    waits = any(
        policy.get(name) for name in ("default_timeout_microseconds", "allow_timeout_override", "max_queue_size")
    )
    if not (waits or batching.get("priority_levels")):
        return []
    text = (
        "a queue policy or priority levels stop Triton's batcher from prefetching: a request can wait 500 ms for an "
        "idle instance; remove them, the gateway bounds the queue and keeps deadlines"
    )
    return [text]


def _findings(
    statistics: Statistics, limit: int, batching: bool, instances: int, delay: int, split: dict[str, float]
) -> list[str]:
    found = []
    mean = statistics.mean_batch
    if mean is None:
        return ["no inference has run: there is nothing to explain yet"]
    if limit == 0:
        return ["max_batch_size is 0: the model has no batch dimension, so Triton cannot batch it"]
    if not batching:
        found.append("dynamic_batching is absent from config.pbtxt: Triton runs each request by itself")
    rows = statistics.inferences / max(1, statistics.requests)
    if rows > 1.5:
        found.append(f"a request brings {rows:.1f} rows: the gateway coalesced them, or clients send batches")
    if mean < 1.2:
        if split["queue"] < 0.5 * split["compute_infer"]:
            found.append(
                f"requests wait {split['queue']:.2f} ms and compute for {split['compute_infer']:.2f} ms: they seldom "
                "meet in the queue, so there is nothing to batch at this load"
            )
            if delay == 0 and batching:
                found.append("a queue delay would make batches, but also make every lonely request wait")
        else:
            found.append(
                f"requests wait {split['queue']:.2f} ms, yet run alone: shapes differ (lengths in different buckets), "
                "or an instance is free whenever one arrives"
            )
        if instances > 1:
            found.append(f"{instances} instances take requests one each before a batch can form")
    else:
        found.append(f"{mean:.1f} inferences run at once on average, of at most {limit}")
        if mean > 0.9 * limit:
            found.append("batches are full: a larger max_batch_size could carry more")
    cost = batch_costs(statistics)
    if len(cost) > 1:
        small, large = min(cost), max(cost)
        gain = cost[small] / cost[large]
        found.append(
            f"an inference costs {cost[small]:.2f} ms in batches of {small} "
            f"and {cost[large]:.2f} ms in batches of {large}: "
            + ("batching pays" if gain > 1.1 else "batching hardly pays for this model on this machine")
        )
    return found


def batch_costs(statistics: Statistics) -> dict[int, float]:
    """Milliseconds of compute per inference by batch size, for sizes seen at least 20 times."""
    return {
        size: statistics.batch_ns[size] / count / size / 1e6
        for size, count in sorted(statistics.batches.items())
        if count >= 20 and size in statistics.batch_ns
    }


async def watch(url: str, key: str | None, model: str, seconds: float) -> Explanation:
    """Look at ``model`` for ``seconds`` (0: everything since it was loaded). Raises ``LookupError``."""
    observer = Observer(url, key)
    config = await asyncio.to_thread(observer.config, model)
    before = await asyncio.to_thread(observer.statistics, model)
    if config is None or before is None:
        raise LookupError(f"{url} does not tell about a model named {model!r} (is it loaded, and the key valid?)")
    if seconds:
        await asyncio.sleep(seconds)
        after = await asyncio.to_thread(observer.statistics, model)
        return explain(model, (after or before) - before, config)
    return explain(model, before, config)


class Setting(msgspec.Struct, frozen=True):
    """One point of the search."""

    batching: bool = True
    instances: int | None = None
    queue_delay_us: int | None = None
    preferred: tuple[int, ...] | None = None
    coalescing: bool = True
    """Whether the gateway joins waiting requests: a setting of the whole gateway, not of a model."""

    def environment(self) -> dict[str, str]:
        """What the gateway is started with."""
        return {} if self.coalescing else {"TIDEGATE_COALESCE": "false"}

    def recipe(self) -> dict[str, Any]:
        """The same as fields of ``model.yaml``, from which a build writes ``config.pbtxt``."""
        batching: dict[str, Any] = {"enabled": self.batching}
        if self.queue_delay_us is not None:
            batching["max_queue_delay_us"] = self.queue_delay_us
        if self.preferred:
            batching["preferred_batch_sizes"] = list(self.preferred)
        return {"batching": batching, **({"instances": {"count": self.instances}} if self.instances else {})}

    def __str__(self) -> str:
        if not self.batching:
            parts = ["no batching"]
        else:
            parts = [f"delay {self.queue_delay_us} µs" if self.queue_delay_us is not None else "as configured"]
        if self.preferred:
            parts.append(f"preferred {','.join(map(str, self.preferred))}")
        if self.instances is not None:
            parts.append(f"{self.instances} instance{'s' if self.instances > 1 else ''}")
        if not self.coalescing:
            parts.append("no coalescing")
        return ", ".join(parts)


class Trial(msgspec.Struct):
    """What one setting reached: goodput within the objective at each number of users, repeated."""

    setting: Setting
    goodput: list[float]
    """The best over user counts, one value a run."""
    users: int
    latency_ms: float | None
    """At the objective's percentile, with that many users; None: too few samples, which count as missed."""
    mean_batch: float | None

    @property
    def best(self) -> float:
        """The median over runs."""
        return sorted(self.goodput)[len(self.goodput) // 2]


class Tuning(msgspec.Struct):
    """The outcome of a search: ``config`` is None where nothing better was found."""

    model: str
    slo: Slo
    trials: list[Trial]
    baseline: Trial
    winner: Trial | None
    config: str | None


def candidates(max_batch: int, instances: Sequence[int], delays_us: Sequence[int]) -> list[Setting]:
    """The configuration as it is first, then delays, preferred sizes and instances, and the gateway's coalescing."""
    counts = sorted(set(instances))
    grid = [Setting(instances=count, queue_delay_us=delay) for count, delay in itertools.product(counts, delays_us)]
    sizes = tuple(size for size in (8, 16, 32) if size <= max_batch)[-2:]
    waiting = [setting for setting in grid if setting.queue_delay_us]  # without a delay nothing waits for a size
    preferred = [msgspec.structs.replace(setting, preferred=sizes) for setting in waiting] if sizes else []
    alone = [Setting(instances=count, queue_delay_us=max(delays_us), coalescing=False) for count in counts]
    return [Setting(), Setting(batching=False), *grid, *preferred, Setting(coalescing=False), *alone]


def texts(config: Any) -> list[str]:
    """Names of the inputs that are strings, for which there are no random tensors."""
    return [tensor.name for tensor in config.input if tensor.data_type == model_config_pb2.TYPE_STRING]


def load_for(model: str, workload: str | None, seed: int, metadata: dict[str, Any] | None = None) -> Workload:
    """What ``model`` is loaded with: ``workload``, also where that is another model's, or random tensors.

    Random tensors need the model's ``metadata``. Raises ``ValueError`` if the workload is for its own model only.
    """
    if workload is None:
        return RawModel(seed, metadata or {})
    kind: Any = WORKLOADS[workload]
    found: Workload = kind(seed)
    if found.model == model:
        return found
    try:
        found = kind(seed, model=model)
    except TypeError as error:
        raise ValueError(f"the workload {workload} is for the model {found.model} alone") from error
    return found


async def tune(
    model: str,
    workload: str | None,
    repository: Path,
    slo: Slo,
    settings: Sequence[Setting],
    *,
    work: Path,
    users: Sequence[int],
    seconds: float,
    seed: int,
    confirm: int = 3,
    say: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Try each setting on a stack of its own through the gateway; confirm the best against the configuration
    as it is. ``workload``: see :func:`load_for`. Raises :class:`benchmarks.stack.StackError`.
    """
    original = read_config(repository / model / "config.pbtxt")
    trials = []
    for number, setting in enumerate(settings):
        folder = _repository(work / str(number), repository, model, original, setting)
        trials.append(await _trial(folder, model, workload, slo, setting, users, seconds, seed))
        say(f"{setting}: {trials[-1].best:,.1f}/s within {slo}")
    baseline, best = trials[0], max(trials, key=lambda trial: trial.best)
    if best is not baseline and best.best > baseline.best * (1 + NOISE):
        for _ in range(confirm - 1):
            for trial in (baseline, best):
                folder = _repository(work / "confirm", repository, model, original, trial.setting)
                again = await _trial(folder, model, workload, slo, trial.setting, (trial.users,), seconds, seed)
                trial.goodput += again.goodput
            say(f"again: as configured {baseline.goodput[-1]:,.1f}/s, {best.setting} {best.goodput[-1]:,.1f}/s")
    proven = (
        best is not baseline and min(best.goodput) > max(baseline.goodput) and best.best > baseline.best * (1 + NOISE)
    )
    return Tuning(
        model, slo, trials, baseline, best if proven else None, _text(original, best.setting) if proven else None
    )


def _text(original: Any, setting: Setting) -> str:
    return changed(
        original, batching=setting.batching, instances=setting.instances, queue_delay_us=setting.queue_delay_us,
        preferred=setting.preferred,
    )  # fmt: skip


def _repository(folder: Path, source: Path, model: str, original: Any, setting: Setting) -> Path:
    if not (folder / model).exists():
        copy(source / model, folder / model)
    rewrite(folder / model, _text(original, setting))
    return folder


async def _trial(
    folder: Path,
    model: str,
    workload: str | None,
    slo: Slo,
    setting: Setting,
    users: Sequence[int],
    seconds: float,
    seed: int,
) -> Trial:
    stack = Stack([model], model_repository=folder, environment=setting.environment())
    await asyncio.to_thread(stack.start)
    try:
        where = stack.addresses
        observer = Observer(where.gateway, where.key)
        metadata = await asyncio.to_thread(observer.metadata, model)
        load = load_for(model, workload, seed, metadata)
        before = await asyncio.to_thread(observer.statistics, model)
        found: list[tuple[float, int, float | None]] = []
        async with connect(where.gateway, where.key, limit=max(users)) as client:
            for count in users:
                run = await ClosedLoop(client, load, count, start=count * 1_000_000).run(seconds, seconds / 4)
                found.append((goodput(run, slo), count, percentile_ms(run, slo.percentile)))
        after = await asyncio.to_thread(observer.statistics, model)
        best, count, at = max(found, key=lambda item: item[0])
        return Trial(setting, [best], count, at, (after - before).mean_batch if after and before else None)
    finally:
        await asyncio.to_thread(stack.stop)


def goodput(run: ClosedRun, slo: Slo) -> float:
    """Right answers in time, a second; 0 if the objective was missed, or had too few samples to be known."""
    inside = int((run.recording.latencies_us(Outcome.OK) <= slo.ms * 1000).sum())
    total = len(run.recording)
    met = total >= sample_floor(slo.percentile) and inside >= total * slo.percentile / 100
    return inside / run.duration_s if met else 0.0


def percentile_ms(run: ClosedRun, percentile: float) -> float | None:
    """Of answers and timeouts; None below the sample floor."""
    latencies = run.recording.latencies_us()
    if len(latencies) < sample_floor(percentile):
        return None
    return float(np.percentile(latencies, percentile, method="inverted_cdf")) / 1000
