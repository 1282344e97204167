"""The least that a gRPC server costs on grpcio's own asyncio layer: a handler that gives the tensor back.

Without key, limits, records or Triton. Beside the gateway this leg of ``tidegate bench overhead`` tells what a
listener built on grpcio could reach at best; the gateway's own is not (docs/decisions/0003).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2 as pb

from benchmarks.children import end, spawn
from benchmarks.floor import await_listening, free_port


async def infer(body: bytes, _context: Any) -> bytes:
    """``ModelInfer``: the input comes back as OUTPUT."""
    message = pb.ModelInferRequest.FromString(body)
    reply = pb.ModelInferResponse(model_name="identity", model_version="1")
    reply.outputs.add(name="OUTPUT", datatype="FP32", shape=message.inputs[0].shape)
    reply.raw_output_contents.append(message.raw_input_contents[0])
    return bytes(reply.SerializeToString())


async def serve(port: int) -> None:
    """Serve on loopback until cancelled."""
    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The server on a free port of loopback, in a process of its own: ``host:port``. Raises ``OSError``."""
    port = free_port()
    process = spawn([sys.executable, "-m", "benchmarks.grpc_floor", str(port)], log, os.environ)
    try:
        await_listening(port, deadline=time.monotonic() + 30)
        yield f"127.0.0.1:{port}"
    finally:
        end(process, 5.0)


def main() -> None:
    """Entry point: the port is the only argument."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
