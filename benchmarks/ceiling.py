"""The ceiling of a task on this machine: the same pre-processing and ONNX Runtime in one process, ideally batched.

    python -m benchmarks.ceiling embeddings --model-repository model_repository

A program of its own, so that nothing of a server runs beside it. It reads commands from standard
input, one number of seconds a line, and answers each with a line of JSON. No network, no key, no
metering: requests wait in memory, sorted into full batches of one length, on as many threads as
there are cores. What a server loses against this is what serving costs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.onnx_task import OnnxTask
from benchmarks.tasks import FIRST
from benchmarks.workloads import WORKLOADS

TEXTS = 2048
PICTURES = 512
BATCHES = (1, 4, 8, 16, 32)
TRIAL_S = 1.0


@dataclass(slots=True, frozen=True)
class Way:
    """How the work is spread: so many sessions side by side, each with so many threads, in batches of ``batch``."""

    sessions: int
    threads: int
    batch: int
    spinning: bool = False
    """Whether idle threads burn a core rather than sleep: with one session, nobody else wants it."""


class Ceiling:
    """One model and a pool of inputs."""

    def __init__(self, repository: Path, workload: str, seed: int) -> None:
        source = WORKLOADS[workload](seed)
        self._task = OnnxTask(repository / source.model)
        items = TEXTS if self._task.text else PICTURES
        self._bodies = [source.request(index).body for index in range(FIRST, FIRST + items)]
        self._sessions = {(1, False): self._task.session}

    def best_way(self) -> Way:
        """The fastest of a few ways, each tried for a second."""
        cores = len(os.sched_getaffinity(0))
        ways = [Way(cores, 1, batch) for batch in BATCHES]
        ways += [Way(1, cores, batch, spinning) for batch in BATCHES for spinning in (False, True)]
        return max(ways, key=lambda way: self.run(way, TRIAL_S))

    def run(self, way: Way, seconds: float) -> float:
        """Items a second."""
        kind = (way.threads, way.spinning)
        if kind not in self._sessions:
            self._sessions[kind] = self._task.new_session(way.threads, spinning=way.spinning)
        session = self._sessions[kind]
        taken = itertools.cycle(self._batches(way.batch))
        stop = time.monotonic() + seconds
        lock = threading.Lock()

        def work() -> int:
            done = 0
            while time.monotonic() < stop:
                with lock:
                    batch = next(taken)
                for row in self._task.infer([self._task.decode(body) for body in batch], session):
                    msgspec.json.encode(self._task.encode(row))
                done += len(batch)
            return done

        began = time.monotonic()
        with ThreadPoolExecutor(way.sessions) as pool:
            total = sum(future.result() for future in [pool.submit(work) for _ in range(way.sessions)])
        return total / (time.monotonic() - began)

    def _batches(self, size: int) -> list[list[bytes]]:
        """Full batches of one length: better than any queue could ever hand them out."""
        groups: dict[int, list[bytes]] = {}
        for body in self._bodies:
            length = self._task.bucket(len(self._task.decode(body))) if self._task.text else 0
            groups.setdefault(length, []).append(body)
        batches = [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
        random.Random(1).shuffle(batches)  # a short run must not see one length alone
        return batches


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=["sentiment", "embeddings", "embeddings-int8", "imagenet"])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    ceiling = Ceiling(arguments.model_repository, arguments.workload, arguments.seed)
    way = ceiling.best_way()
    print(msgspec.json.encode(way).decode(), flush=True)
    for line in sys.stdin:
        print(msgspec.json.encode({"items_per_s": ceiling.run(way, float(line))}).decode(), flush=True)


if __name__ == "__main__":
    main()
