"""What every training script shares: options, seeds, the schedule, averaging, the record."""

import argparse
import copy
import hashlib
import json
import logging
import math
import platform
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

logger = logging.getLogger("zoo.training")


@dataclass(frozen=True)
class Options:
    """The command line of a training script.

    data: folder with the data sets; out: folder the weights go to; minutes: training time,
    which also sets the length of the learning-rate schedule; start: folder of earlier weights
    to go on from, where the script can.
    """

    data: Path
    out: Path
    seed: int
    minutes: float
    start: Path | None = None


def parse_options(description: str, minutes: float, arguments: Sequence[str] | None = None) -> Options:
    """Read `--data --out [--seed] [--minutes]`; logs go to stderr from here on."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=minutes, help="training time")
    parser.add_argument("--start", type=Path, help="folder of weights to go on from (translation only)")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parsed.out.mkdir(parents=True, exist_ok=True)
    return Options(parsed.data, parsed.out, parsed.seed, parsed.minutes, parsed.start)


def seed_everything(seed: int) -> random.Random:
    """Seed torch and NumPy; the generator returned is for the script's own choices."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    return random.Random(seed)


class Budget:
    """A span of training time, and how much of it has passed."""

    def __init__(self, minutes: float) -> None:
        self._start = time.monotonic()
        self._seconds = minutes * 60

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """From 0 at the start to 1 when the time is up."""
        return min(1.0, self.elapsed / self._seconds)

    def spent(self) -> bool:
        """Whether the time is up."""
        return self.progress >= 1.0


def warm_cosine(step: int, progress: float, warmup: int, floor: float = 0.02) -> float:
    """Factor of the peak learning rate: linear warm-up in steps, then cosine over `progress`."""
    warm = min(1.0, (step + 1) / warmup)
    return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class ByteDropout(nn.Module):
    """nn.Dropout from random bytes: several times faster on a CPU, p rounded to 1/256."""

    def __init__(self, p: float, generator: np.random.Generator) -> None:
        super().__init__()
        self.p = p
        self._threshold = round(p * 256)
        self._generator = generator

    def forward(self, states: Tensor) -> Tensor:
        """Zero a share p of the elements in training, and scale the others up."""
        if not self.training or self._threshold == 0:
            return states
        noise = np.frombuffer(bytearray(self._generator.bytes(states.numel())), dtype=np.uint8)
        kept = (torch.from_numpy(noise) >= self._threshold).view(states.shape)
        return states * kept.to(states.dtype).mul_(256 / (256 - self._threshold))


def use_byte_dropout(model: nn.Module, seed: int) -> None:
    """Put a ByteDropout in the place of every nn.Dropout of `model`."""
    generator = np.random.default_rng(seed)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, ByteDropout(child.p, generator))


Module = TypeVar("Module", bound=nn.Module)


class Trainer(Generic[Module]):
    """AdamW on float32 weights for a model that computes in `dtype`, with averaging.

    Matrix products in bfloat16 are three times as fast on a processor with AVX512-BF16. The
    updates are too small for bfloat16, so the weights proper are float32 copies (Micikevicius
    et al. 2018). Their exponential moving average, at first short and then up to `averaging`,
    is what gets evaluated and kept.
    """

    def __init__(
        self,
        model: Module,
        *,
        averaging: float,
        dtype: torch.dtype = torch.bfloat16,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        seed: int = 1,
    ) -> None:
        self.average: Module = copy.deepcopy(model).eval().requires_grad_(False)
        names = [name for name, value in model.named_parameters() if value.requires_grad]
        own: dict[str, Tensor] = dict(self.average.named_parameters())
        self._averages = [own[name] for name in names]
        self._masters = [value.clone() for value in self._averages]
        use_byte_dropout(model, seed)
        self.model = model.to(dtype).train()
        trained: dict[str, Tensor] = dict(self.model.named_parameters())
        self._trained = [trained[name] for name in names]
        self._optimizer = torch.optim.AdamW(self._masters, betas=betas, weight_decay=weight_decay, fused=True)
        self._averaging = averaging
        self.steps = 0

    def step(self, loss: Tensor, rate: float) -> None:
        """Back-propagate, clip the gradient's norm at 1, update at the learning rate `rate`."""
        loss.backward()  # type: ignore[no-untyped-call]
        for master, weight in zip(self._masters, self._trained, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self.steps += 1
        with torch.no_grad():
            torch._foreach_copy_(self._trained, self._masters)
            decay = min(self._averaging, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self._averages, self._masters, 1 - decay)


def length_buckets(lengths: Sequence[int], tokens: int, generator: random.Random) -> list[list[int]]:
    """Shuffled batches of row numbers with similar lengths, at most `tokens` after padding."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], generator.random()))
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in order:
        if batch and lengths[row] * (len(batch) + 1) > tokens:
            batches.append(batch)
            batch = []
        batch.append(row)
    if batch:
        batches.append(batch)
    generator.shuffle(batches)
    return batches


def pad_rows(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Rows of ids -> int64 [batch, longest], filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> input_ids and attention_mask, both int64 [batch, longest]."""
    return pad_rows(rows), pad_rows([[1] * len(row) for row in rows])


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_record(
    folder: Path,
    *,
    model: str,
    files: Iterable[Path],
    split: str,
    hyperparameters: Mapping[str, Any],
    score: Mapping[str, Any],
    seed: int,
    seconds: float,
    libraries: Sequence[str] = ("torch", "tokenizers", "safetensors", "numpy"),
) -> None:
    """Write training.json: everything needed to tell how the weights came about."""
    record = {
        "model": model,
        "data": [{"file": path.name, "sha256": sha256(path)} for path in files],
        "split": split,
        "seed": seed,
        "hyperparameters": dict(hyperparameters),
        "score": dict(score),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "wall_time_s": round(seconds),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / "training.json").write_text(text + "\n", encoding="utf-8")


def write_labels(folder: Path, labels: Iterable[str]) -> None:
    """Write labels.txt, one label a line in the order of the logits."""
    text = "".join(f"{label}\n" for label in labels)
    (folder / "labels.txt").write_text(text, encoding="utf-8")
