"""Models on a CUDA GPU through the embedded backends, and the proof that they ran there.

The backends run on the CPU where their library finds no GPU, and answer all the same. So the library is asked
first, and while a model is loaded the GPU itself is watched: if its memory and its utilisation do not move, the
model's measurements are INVALID.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from benchmarks import runner
from benchmarks.configs import copy, read_config, rewrite
from benchmarks.cost import Machine
from benchmarks.environment import gpus
from benchmarks.runner import Plan, Results
from benchmarks.suite import Scenario, Suite

USERS = (1, 8, 32, 128)
LEAST_MIB = 64
"""A model that lies on a GPU takes at least so much of its memory: the CUDA context alone is larger."""
PROBES: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime": "import onnxruntime as o; print('CUDAExecutionProvider' in o.get_available_providers())",
        "pytorch": "import torch; print(torch.cuda.is_available())",
    }
)
"""By backend: a program that prints whether its library can use CUDA. It runs in a process of its own."""
_COLUMNS = "--query-gpu=index,memory.used,utilization.gpu"
_PLAIN = "--format=csv,noheader,nounits"


class NoGpuError(Exception):
    """There is no CUDA GPU here, or no library that can use it."""


def require(*backends: str) -> list[str]:
    """The GPUs of this machine, which the libraries of ``backends`` can use. Raises :class:`NoGpuError`."""
    found = gpus()
    if not found:
        raise NoGpuError("no CUDA GPU here: nvidia-smi shows none")
    for backend in sorted(set(backends) & set(PROBES)):
        if not _usable(backend):
            raise NoGpuError(
                f"no CUDA GPU here for {backend}: its library in {sys.executable} has none and would run on the CPU"
            )
    return found


def _usable(backend: str) -> bool:
    done = subprocess.run(  # noqa: S603 - our own programs
        [sys.executable, "-c", PROBES[backend]], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode == 0 and done.stdout.split()[-1:] == ["True"]


def backends(repository: Path, models: Sequence[str]) -> list[str]:
    """The backends of ``models``, whose configurations must be in ``repository``. Raises ``OSError``."""
    return [str(read_config(repository / model / "config.pbtxt").backend) for model in models]


def repository(source: Path, models: list[str], target: Path) -> Path:
    """A copy of the models that asks Triton for ``KIND_GPU`` instances."""
    for model in models:
        copy(source / model, target / model)
        rewrite(target / model, on_gpu(target / model / "config.pbtxt"))
    return target


def on_gpu(path: Path) -> str:
    """The configuration at ``path`` with its instances on the GPU."""
    config = read_config(path)
    if not config.instance_group:
        config.instance_group.add().count = 1
    for group in config.instance_group:
        group.kind = group.KIND_GPU
    return str(config)


@dataclass(slots=True)
class Activity:
    """What the GPUs did: by index, memory (MiB) before and at most, and the highest utilisation (per cent)."""

    before: dict[int, int]
    memory: dict[int, int] = field(default_factory=dict)
    utilisation: dict[int, int] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """A line of ``nvidia-smi``; anything else, such as a GPU that does not tell, is passed over."""
        with contextlib.suppress(ValueError):
            index, memory, utilisation = (int(cell) for cell in line.split(","))
            self.memory[index] = max(memory, self.memory.get(index, 0))
            self.utilisation[index] = max(utilisation, self.utilisation.get(index, 0))

    def __str__(self) -> str:
        grown = max((memory - self.before.get(index, 0) for index, memory in self.memory.items()), default=0)
        return f"GPU memory grew by {grown} MiB, utilisation came to {max(self.utilisation.values(), default=0)} %"

    @property
    def worked(self) -> bool:
        """Whether one GPU both took the model's memory and computed."""
        return any(
            memory - self.before.get(index, 0) >= LEAST_MIB and self.utilisation[index] > 0
            for index, memory in self.memory.items()
        )


@contextlib.contextmanager
def watching(every_ms: int = 200) -> Iterator[Activity]:
    """Samples all GPUs while the block runs; memory counts from what was used before it. Raises ``OSError``."""
    query = ["nvidia-smi", _COLUMNS, _PLAIN]
    idle = Activity({})
    for line in subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout.splitlines():  # noqa: S603
        idle.add(line)
    activity = Activity(idle.memory)
    with subprocess.Popen([*query, "-lms", str(every_ms)], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603

        def read() -> None:
            for line in process.stdout or ():
                activity.add(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield activity
        finally:
            process.terminate()
            reader.join()


def judge(results: Results, activity: Activity) -> None:
    """Note what the GPU did on every measurement, and make them INVALID if it did nothing."""
    for item in results.measurements:
        item.notes.append(str(activity))
        if not activity.worked:
            item.verdict = "INVALID"
            item.reasons.append(f"the model did not run on the GPU: {activity}")


async def measure(
    models: Sequence[str],
    copied: Path,
    out: Path,
    seed: int,
    machine: Machine,
    seconds: float,
    say: Callable[[str], None],
) -> Results:
    """Each model alone, on a stack of its own, so that what the GPU does is that model's doing.

    ``copied`` comes from :func:`repository`. Raises :class:`benchmarks.stack.StackError`.
    """
    found = []
    for name in models:
        suite, samples = _suite([name], seconds), out / "samples" / name
        plan = Plan(suite, samples, seed, machine, model_repository=copied, say=say)
        with watching() as activity:
            results = await runner.run(plan)
        judge(results, activity)
        found.append(results)
    return _joined(_suite(models, seconds), found)


def _suite(models: Sequence[str], seconds: float) -> Suite:
    scenarios = tuple(Scenario("closed_sweep", name, users=USERS, duration_s=seconds) for name in models)
    return Suite("On a CUDA GPU", scenarios, name="gpu")


def _joined(suite: Suite, found: Sequence[Results]) -> Results:
    """One report of several, in which the generator stands as it did for the fastest of them."""
    calibrations = [item.calibration for item in found if item.calibration is not None]
    return msgspec.structs.replace(
        found[0],
        suite=suite,
        noise=list(dict.fromkeys(reason for item in found for reason in item.noise)),
        measurements=[one for item in found for one in item.measurements],
        skipped=list(dict.fromkeys(reason for item in found for reason in item.skipped)),
        calibration=max(calibrations, key=lambda item: item.highest, default=None),
    )
