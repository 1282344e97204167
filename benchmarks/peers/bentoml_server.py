"""BentoML with adaptive batching (``batchable=True``) in one service, as its guide has it.

Clients send lists of one; the dispatcher joins them. (A second service in front, which would unwrap single
inputs, costs a process hop on two cores.) Pictures are uploaded as files of a form. ``max_latency_ms`` is what
the dispatcher aims at and refuses beyond; ``tune`` finds it.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
from PIL import Image

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way

FOLDER = Path(os.environ.get("PEER_MODEL", "."))
WAY = Way.of_environment()
BATCHING = {"batchable": True, "max_batch_size": WAY.batch, "max_latency_ms": int(WAY.wait_ms)} if WAY.batch > 1 else {}


@bentoml.service(workers=WAY.workers, traffic={"timeout": 30, "max_concurrency": 1024})
class Task:
    """One model."""

    def __init__(self) -> None:
        self._task = OnnxTask(FOLDER, threads=WAY.threads)

    @bentoml.api(route="/predict", **BATCHING)
    def predict(self, inputs: list[str]) -> list[Any]:
        """Texts of one batch to answers."""
        return self._answers([self._task.decode_text(value) for value in inputs])

    @bentoml.api(route="/pictures", **BATCHING)
    def pictures(self, inputs: list[Image.Image]) -> list[Any]:
        """Pictures of one batch, opened but not decoded, to answers."""
        return self._answers([self._task.decode_picture(picture) for picture in inputs])

    def _answers(self, rows: list[Any]) -> list[Any]:
        return [self._task.encode(row) for row in self._task.infer(rows)]
