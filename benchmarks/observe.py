"""What the system says about itself: Triton's statistics, usage records, processor time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec
import psutil


class Statistics(msgspec.Struct, frozen=True):
    """Triton's counters of one model (all versions); differences of two are what a run did."""

    inferences: int = 0
    executions: int = 0
    requests: int = 0
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    batches: dict[int, int] = {}
    """Executions by batch size."""
    batch_ns: dict[int, int] = {}
    """Nanoseconds of compute by batch size."""

    def __sub__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.inferences - other.inferences,
            self.executions - other.executions,
            self.requests - other.requests,
            self.queue_ns - other.queue_ns,
            self.compute_input_ns - other.compute_input_ns,
            self.compute_infer_ns - other.compute_infer_ns,
            self.compute_output_ns - other.compute_output_ns,
            {
                size: count - other.batches.get(size, 0)
                for size, count in self.batches.items()
                if count > other.batches.get(size, 0)
            },
            {size: spent - other.batch_ns.get(size, 0) for size, spent in self.batch_ns.items()},
        )

    @property
    def mean_batch(self) -> float | None:
        """Inferences per execution."""
        return self.inferences / self.executions if self.executions else None

    def split_ms(self) -> dict[str, float]:
        """Milliseconds of an average request in each of Triton's stages."""
        count = max(1, self.requests)
        return {
            "queue": self.queue_ns / count / 1e6,
            "compute_input": self.compute_input_ns / count / 1e6,
            "compute_infer": self.compute_infer_ns / count / 1e6,
            "compute_output": self.compute_output_ns / count / 1e6,
        }


class Observer:
    """Asks a gateway (with a key) or a Triton over HTTP. What it does not tell is None."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def get(self, path: str, timeout_s: float = 10.0) -> Any:
        """JSON of ``GET path``, or None if it is refused or unreachable."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with urlopen(Request(self._url + path, headers=headers), timeout=timeout_s) as response:  # noqa: S310
                return json.load(response)
        except (HTTPError, URLError, OSError, ValueError):
            return None

    def models(self) -> list[str]:
        """Names of the models that are ready for the key."""
        found = self.get("/v1/models")
        return [item["id"] for item in found["data"] if item.get("tidegate", {}).get("ready", True)] if found else []

    def metadata(self, model: str) -> dict[str, Any] | None:
        """The model's inputs and outputs."""
        found: dict[str, Any] | None = self.get(f"/v2/models/{quote(model, safe='')}")
        return found

    def config(self, model: str) -> dict[str, Any] | None:
        """The model's configuration as Triton has it."""
        found: dict[str, Any] | None = self.get(f"/v2/models/{quote(model, safe='')}/config")
        return found

    def statistics(self, model: str) -> Statistics | None:
        """Triton's counters of ``model``."""
        found = self.get(f"/v2/models/{quote(model, safe='')}/stats")
        return read_statistics(found["model_stats"]) if found and "model_stats" in found else None

    def completed(self) -> int | None:
        """Completed usage records of everything the key may see; None without ``usage:read``."""
        found = self.get("/admin/usage?group_by=model")
        if not found or "usage" not in found:
            return None
        return sum(int(row["completed"]) for row in found["usage"])


def read_statistics(items: list[dict[str, Any]]) -> Statistics:
    """Sum over the versions in a statistics answer."""
    total: dict[str, int] = dict.fromkeys(Statistics.__struct_fields__[:-2], 0)
    batches: dict[int, int] = {}
    batch_ns: dict[int, int] = {}
    for item in items:
        stages = item["inference_stats"]
        total["inferences"] += int(item["inference_count"])
        total["executions"] += int(item["execution_count"])
        total["requests"] += int(stages["success"]["count"])
        for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
            total[f"{stage}_ns"] += int(stages[stage]["ns"])
        for batch in item.get("batch_stats", []):
            size = int(batch["batch_size"])
            batches[size] = batches.get(size, 0) + int(batch["compute_infer"]["count"])
            batch_ns[size] = batch_ns.get(size, 0) + int(batch["compute_infer"]["ns"])
    return Statistics(**total, batches=batches, batch_ns=batch_ns)


class Resources(msgspec.Struct, frozen=True):
    """Processor seconds by component, and memory; differences of two are what a run did."""

    cpu_s: dict[str, float]
    rss_bytes: int
    generator_s: float = 0.0
    """Processor seconds of this process, which makes the load, and of the children that it waited for."""
    busy_s: float = 0.0
    """Processor seconds of everything on the machine."""
    at_s: float = 0.0

    def foreign_share(self, since: Resources) -> float:
        """Share of the machine's processors that neither the system nor the generator used."""
        known = sum(self.cpu_s.values()) + self.generator_s - sum(since.cpu_s.values()) - since.generator_s
        capacity = (self.at_s - since.at_s) * (psutil.cpu_count() or 1)
        return max(0.0, (self.busy_s - since.busy_s - known) / capacity) if capacity > 0 else 0.0


def resources(pid: int) -> Resources | None:
    """Of the process tree below ``pid``; components are named after what runs in them. None if it is gone."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return None
    cpu: dict[str, float] = {}
    memory = 0
    for process in processes:
        try:
            times, command = process.cpu_times(), " ".join(process.cmdline())
            memory += process.memory_info().rss
        except psutil.Error:
            continue
        name = _component(command)
        cpu[name] = cpu.get(name, 0.0) + times.user + times.system
    own = os.times()
    load = own.user + own.system + own.children_user + own.children_system
    return Resources(cpu, memory, load, _busy_s(), time.monotonic())


class MemoryWatch:
    """The most resident memory that the process tree below ``pid`` had while this was open.

    Sampled twice a second in the event loop of the generator: some ten small files a time, a quarter of a millisecond.
    """

    EVERY_S = 0.5

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._processes: list[psutil.Process] = []
        self._task: asyncio.Task[None] | None = None
        self.peak_bytes: int | None = None

    async def __aenter__(self) -> MemoryWatch:
        if self._pid is not None:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(self._pid)
                self._processes = [root, *root.children(recursive=True)]
            self._look()
            self._task = asyncio.create_task(self._keep_looking())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._look()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self.EVERY_S)
            self._look()

    def _look(self) -> None:
        held = 0
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        if held:
            self.peak_bytes = max(held, self.peak_bytes or 0)


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice already
    return float(sum(times) - idle - guest - getattr(times, "steal", 0.0))


def _component(command: str) -> str:
    known = {
        "tritonserver": "triton",
        "python_backend_stub": "backend",
        "tidegate serve": "gateway",
        "tidegate up": "launcher",
    }
    return next((name for part, name in known.items() if part in command), "server")
