"""Ray Serve with ``@serve.batch``, several replicas, as its guide to dynamic request batching has it."""

# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined,misc"
# (installed in an environment of its own)

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way

WAY = Way.of_environment()


@serve.deployment(num_replicas=WAY.workers, max_ongoing_requests=256)
class Task:
    """One model."""

    def __init__(self, folder: str) -> None:
        self._onnx = OnnxTask(Path(folder), threads=WAY.threads)

    @serve.batch(max_batch_size=WAY.batch, batch_wait_timeout_s=WAY.wait_s)
    async def _infer(self, bodies: list[bytes]) -> list[Any]:
        rows = self._onnx.infer([self._onnx.decode(body) for body in bodies])
        return [self._onnx.encode(row) for row in rows]

    async def __call__(self, request: Request) -> Any:
        """Ready, or one answer."""
        if request.method == "GET":
            return {"ready": True}
        return await self._infer(await request.body())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    serve.run(Task.bind(str(arguments.folder)), route_prefix="/")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
