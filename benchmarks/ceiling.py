"""The ceiling of a task on this machine: the same pre-processing and ONNX Runtime in one process, ideally batched.

    python -m benchmarks.ceiling embeddings --model-repository model_repository

A program of its own, so that nothing of a server runs beside it. It reads commands from standard
input, one number of seconds a line, and answers each with a line of JSON. No network, no key, no
metering: requests wait in memory, sorted into full batches of one length, on as many threads as
there are cores. What a server loses against this is what serving costs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
import yaml
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.workloads import WORKLOADS

ITEMS = 512
BATCHES = (8, 16, 32)
TRIAL_S = 1.0
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(slots=True, frozen=True)
class Way:
    """How the work is spread: so many sessions side by side, each with so many threads, in batches of ``batch``."""

    sessions: int
    threads: int
    batch: int


class Ceiling:
    """One model, its pre- and post-processing, and a pool of inputs."""

    def __init__(self, repository: Path, workload: str, seed: int) -> None:
        source = WORKLOADS[workload](seed)
        folder = repository / source.model
        self._recipe: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        self._file = folder / str(self._recipe.get("version", 1)) / "model.onnx"
        self._preprocessing: dict[str, Any] = self._recipe["preprocessing"]
        self._bodies = [source.request(index).body for index in range(ITEMS)]
        self._text = self._preprocessing["kind"] == "text"
        self._labels = self._recipe.get("labels") or _labels(folder)
        if self._text:
            self._tokenizer = Tokenizer.from_file(str(folder / self._preprocessing.get("tokenizer", "tokenizer.json")))
            self._tokenizer.enable_truncation(self._preprocessing.get("max_length", 256))
            self._tokenizer.no_padding()
        self._sessions: dict[int, onnxruntime.InferenceSession] = {}

    def best_way(self) -> Way:
        """The fastest of a few ways, each tried for a second."""
        cores = len(os.sched_getaffinity(0))
        ways = [Way(cores, 1, batch) for batch in BATCHES] + [Way(1, cores, batch) for batch in BATCHES]
        return max(ways, key=lambda way: self.run(way, TRIAL_S))

    def run(self, way: Way, seconds: float) -> float:
        """Items a second."""
        batches = self._batches(way.batch)
        session = self._session(way.threads)
        stop = time.monotonic() + seconds
        taken = iter(_cycle(batches))
        lock = threading.Lock()

        def work() -> int:
            done = 0
            while time.monotonic() < stop:
                with lock:
                    batch = next(taken)
                self._answer(session, batch)
                done += len(batch)
            return done

        began = time.monotonic()
        with ThreadPoolExecutor(way.sessions) as pool:
            total = sum(future.result() for future in [pool.submit(work) for _ in range(way.sessions)])
        return total / (time.monotonic() - began)

    def _session(self, threads: int) -> onnxruntime.InferenceSession:
        if threads not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            self._sessions[threads] = onnxruntime.InferenceSession(
                str(self._file), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[threads]

    def _batches(self, size: int) -> list[list[bytes]]:
        """Full batches of one length: better than any queue could ever hand them out."""
        if not self._text:
            return [self._bodies[start : start + size] for start in range(0, ITEMS, size)]
        groups: dict[int, list[bytes]] = {}
        for body in self._bodies:
            groups.setdefault(self._bucket(len(self._tokens(body))), []).append(body)
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    def _tokens(self, body: bytes) -> list[int]:
        return list(self._tokenizer.encode(msgspec.json.decode(body)["inputs"]).ids)

    def _bucket(self, length: int) -> int:
        buckets: Sequence[int] = self._preprocessing.get("buckets", (16, 32, 64, 128, 256))
        return next((bucket for bucket in buckets if bucket >= length), buckets[-1])

    def _answer(self, session: onnxruntime.InferenceSession, batch: list[bytes]) -> list[bytes]:
        feeds = self._text_feeds(batch) if self._text else self._image_feeds(batch)
        names = [item.name for item in session.get_inputs()]
        output = session.run([session.get_outputs()[0].name], {name: feeds[name.split("__")[0]] for name in names})[0]
        return [self._encode(row) for row in np.asarray(output)]

    def _text_feeds(self, batch: list[bytes]) -> dict[str, npt.NDArray[Any]]:
        rows = [self._tokens(body) for body in batch]
        width = self._bucket(max(map(len, rows)))
        ids = np.full((len(rows), width), self._preprocessing.get("pad_id", 0), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def _image_feeds(self, batch: list[bytes]) -> dict[str, npt.NDArray[Any]]:
        return {"image": np.stack([self._picture(body) for body in batch])}

    def _picture(self, body: bytes) -> npt.NDArray[np.uint8]:
        settings = self._preprocessing
        height, width = settings["crop"]
        shorter = settings.get("resize_shorter_side")
        with Image.open(io.BytesIO(body)) as source:
            if shorter:
                source.draft("RGB", (2 * shorter, 2 * shorter))  # as the gateway does: twice what is needed
            picture = source.convert(settings.get("mode", "RGB"))
        resampling = _RESAMPLING[settings.get("interpolation", "bicubic")]
        if shorter:
            scale = shorter / min(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), resampling)
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        else:
            picture = picture.resize((width, height), resampling)
        return np.asarray(picture, dtype=np.uint8).reshape(height, width, -1)

    def _encode(self, row: npt.NDArray[np.float32]) -> bytes:
        if self._recipe["task"] == "feature-extraction":
            return msgspec.json.encode((row / max(1e-12, float(np.linalg.norm(row)))).tolist())
        scores = np.exp(row - row.max())
        scores /= scores.sum()
        best = np.argsort(-scores)[:5]
        return msgspec.json.encode([{"label": self._labels[index], "score": float(scores[index])} for index in best])


def _labels(folder: Path) -> list[str]:
    path = folder / "labels.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _cycle(batches: list[list[bytes]]) -> Any:
    while True:
        yield from batches


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
