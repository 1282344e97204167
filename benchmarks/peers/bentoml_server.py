"""BentoML with adaptive batching (``batchable=True``) in one service, as its guide has it.

Clients send lists of one; the dispatcher joins them. (A second service in front, which would unwrap single
inputs, costs a process hop on two cores.)
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way

FOLDER = Path(os.environ.get("PEER_MODEL", "."))
WAY = Way.of_environment()


@bentoml.service(workers=WAY.workers, traffic={"timeout": 30, "max_concurrency": 1024})
class Task:
    """One model."""

    def __init__(self) -> None:
        self._task = OnnxTask(FOLDER, threads=WAY.threads)

    @bentoml.api(route="/predict", batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, inputs: list[str]) -> list[Any]:
        """Texts, or pictures in base64, of one batch to answers."""
        rows = [self._task.decode_value(value) for value in inputs]
        return [self._task.encode(row) for row in self._task.infer(rows)]
