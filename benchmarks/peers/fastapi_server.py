"""FastAPI and ONNX Runtime, the plain way: decode, run and answer in the handler's thread; nothing is batched.

As FastAPI's documentation has it for blocking work: ``def`` endpoints, which run in its thread pool.
The session uses one thread an operator, the pool provides the parallelism.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI, Request, Response

from benchmarks.onnx_task import OnnxTask


async def read_body(request: Request) -> bytes:
    """The request's bytes, read on the event loop."""
    return await request.body()


def create_app(folder: Path) -> FastAPI:
    """One model."""
    task = OnnxTask(folder, threads=max(1, (os.cpu_count() or 1) // 2))
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/predict")
    def predict(body: bytes = Depends(read_body)) -> Response:
        answer = task.encode(task.infer([task.decode(body)])[0])
        return Response(json.dumps(answer), media_type="application/json")

    return app


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(arguments.folder), host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
