"""FastAPI and ONNX Runtime, the plain way: decode, run and answer in the handler's thread; nothing is batched.

As FastAPI's documentation has it for blocking work: ``def`` endpoints, which run in its thread pool, and
uvicorn's worker processes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI, Request, Response

from benchmarks.onnx_task import OnnxTask
from benchmarks.peers.ways import Way


async def read_body(request: Request) -> bytes:
    """The request's bytes, read on the event loop."""
    return await request.body()


def create_app(folder: Path | None = None) -> FastAPI:
    """One model; the folder in ``PEER_MODEL`` where none is given (that is how uvicorn's workers call it)."""
    task = OnnxTask(folder or Path(os.environ["PEER_MODEL"]), threads=Way.of_environment().threads)
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
    os.environ["PEER_MODEL"] = str(arguments.folder)
    uvicorn.run(
        "benchmarks.peers.fastapi_server:create_app", factory=True, host="127.0.0.1", port=arguments.port,
        workers=Way.of_environment().workers, log_level="warning", access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
