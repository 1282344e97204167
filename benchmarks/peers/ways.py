"""How a peer spreads its work over the cores. The servers read it too: the standard library alone is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, frozen=True)
class Way:
    """So many processes (or replicas) with so many threads of ONNX Runtime each."""

    workers: int
    threads: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further environment of the server: switches from the peer's own guide."""

    def __str__(self) -> str:
        text = f"{self.workers} x {self.threads}"
        return f"{text}, {', '.join(f'{name}={value}' for name, value in self.settings.items())}".rstrip(", ")

    def environment(self) -> dict[str, str]:
        """For the server's process."""
        return {"PEER_WORKERS": str(self.workers), "PEER_THREADS": str(self.threads), **self.settings}

    @classmethod
    def of_environment(cls) -> Way:
        """What the process was told; one worker with all cores where it was told nothing."""
        return cls(int(os.environ.get("PEER_WORKERS", "1")), int(os.environ.get("PEER_THREADS", os.cpu_count() or 1)))


def usual(cores: int) -> tuple[Way, ...]:
    """A process a core, or one process that uses them all."""
    return distinct(Way(cores, 1), Way(1, cores))


def distinct(*ways: Way) -> tuple[Way, ...]:
    """Each once: on one core, many are the same."""
    return tuple({str(way): way for way in ways}.values())
