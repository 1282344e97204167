"""How a peer does its work on this machine. The servers read it too: the standard library alone is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

BATCH = 8
WAIT_MS = 5.0


@dataclass(slots=True, frozen=True)
class Way:
    """So many processes (or replicas) with so many threads of ONNX Runtime each, and batches up to a size."""

    workers: int
    threads: int
    batch: int = BATCH
    """Inputs of one run at most; 1: nothing is batched."""
    wait_ms: float = WAIT_MS
    """What the peer's own batching waits for a batch, or by when it wants to have answered (BentoML)."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further environment of the server: switches from the peer's own guide."""

    def __str__(self) -> str:
        batch = f"batch {self.batch}" + (f" in {self.wait_ms:g} ms" if self.batch > 1 else "")
        switches = [f"{name}={value}" for name, value in self.settings.items()]
        return ", ".join([f"{self.workers} x {self.threads}", batch, *switches])

    def environment(self) -> dict[str, str]:
        """For the server's process."""
        return {
            "PEER_WORKERS": str(self.workers), "PEER_THREADS": str(self.threads), "PEER_BATCH": str(self.batch),
            "PEER_WAIT_MS": str(self.wait_ms), **self.settings,
        }  # fmt: skip

    @classmethod
    def of_environment(cls) -> Way:
        """What the process was told; one worker with all cores where it was told nothing."""
        told = os.environ
        return cls(
            int(told.get("PEER_WORKERS", "1")), int(told.get("PEER_THREADS", os.cpu_count() or 1)),
            int(told.get("PEER_BATCH", BATCH)), float(told.get("PEER_WAIT_MS", WAIT_MS)),
        )  # fmt: skip

    @property
    def wait_s(self) -> float:
        """``wait_ms`` in seconds; 0 where nothing is batched."""
        return self.wait_ms / 1000 if self.batch > 1 else 0.0


def spread(way: Way, cores: int) -> tuple[Way, ...]:
    """A process a core, or one process that uses them all."""
    return distinct(replace(way, workers=cores, threads=1), replace(way, workers=1, threads=cores))


def batches(way: Way, _cores: int) -> tuple[Way, ...]:
    """No batches, larger ones, and the same with more patience."""
    return replace(way, batch=1), replace(way, batch=32), replace(way, wait_ms=4 * way.wait_ms)


def distinct(*ways: Way) -> tuple[Way, ...]:
    """Each once: on one core, many are the same."""
    return tuple({str(way): way for way in ways}.values())
