"""BentoML with adaptive batching (``batchable=True``), a worker a core, as its guides have it."""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.onnx_task import OnnxTask

FOLDER = Path(os.environ.get("PEER_MODEL", "."))


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1024})
class Model:
    """Runs batches."""

    def __init__(self) -> None:
        self._task = OnnxTask(FOLDER, threads=os.cpu_count() or 1)

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def infer(self, bodies: list[str]) -> list[Any]:
        """Texts, or pictures in base64, of one batch to answers."""
        rows = [self._task.decode_value(value) for value in bodies]
        return [self._task.encode(row) for row in self._task.infer(rows)]


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1024})
class Task:
    """The public endpoint."""

    model = bentoml.depends(Model)

    @bentoml.api(route="/predict")
    async def predict(self, inputs: str) -> Any:
        """``{"inputs": text or base64}`` to the task's answer."""
        return (await self.model.to_async.infer([inputs]))[0]
