"""A server that speaks Triton's gRPC, counts what it is asked, and misbehaves as it is told: for what the real
one cannot be made to do on command, and for proof that nothing was asked at all.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
MODELS = {"identity": False, "stream": True}
"""Name → whether it is decoupled."""
HANG_S = 30.0


class FakeTriton(grpc.GenericRpcHandler):
    """One server. ``mode``: ``echo``, ``hang`` until the caller goes, or ``fail`` with ``failure``."""

    def __init__(self) -> None:
        self.failure = (grpc.StatusCode.INTERNAL, "")
        self.asked: Counter[str] = Counter()
        self.reset()
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=(self,), options=(("grpc.so_reuseport", 0),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def reset(self) -> None:
        """Echo again, and forget what was noted for earlier tests."""
        self.mode = "echo"
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.parts = 0
        """Sent by streams, in all."""
        self.pause_s = 0.02
        """Between two of them."""

    def close(self) -> None:
        """Stop serving."""
        self._server.stop(None).wait()

    def beyond_probes(self) -> dict[str, int]:
        """What was asked, but for what a gateway asks by itself all the time."""
        own = {"RepositoryIndex", "ModelConfig", "ModelStatistics"}
        return {method: count for method, count in self.asked.items() if method not in own}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of any method; every call is counted."""
        name = details.method.rpartition("/")[2]
        self.asked[name] += 1
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(
                self._stream, pb.ModelInferRequest.FromString, pb.ModelStreamInferResponse.SerializeToString
            )
        answer = {
            "RepositoryIndex": self._index, "ModelConfig": self._config, "ModelInfer": self._infer,
            "ModelStatistics": lambda _message, _context: pb.ModelStatisticsResponse(),
        }.get(name)  # fmt: skip
        if answer is None:
            return None  # UNIMPLEMENTED, and counted
        return grpc.unary_unary_rpc_method_handler(
            answer, getattr(pb, f"{name}Request").FromString, getattr(pb, f"{name}Response").SerializeToString
        )

    def _index(self, _message: Any, _context: Any) -> Any:
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(name=name, version="1", state="READY") for name in MODELS]
        )

    def _config(self, message: Any, _context: Any) -> Any:
        config = config_pb.ModelConfig(name=message.name, max_batch_size=64)
        config.input.add(name="INPUT", data_type=config_pb.TYPE_FP32, dims=[64])
        config.output.add(name="OUTPUT", data_type=config_pb.TYPE_FP32, dims=[64])
        config.dynamic_batching.SetInParent()
        config.model_transaction_policy.decoupled = MODELS[message.name]
        return pb.ModelConfigResponse(config=config)

    def _infer(self, message: Any, context: Any) -> Any:
        self.begun.release()
        if self.mode == "fail":
            context.abort(*self.failure)
        if self.mode == "hang":
            self._hang(context)
        return self._reply(message)

    def _stream(self, messages: Iterator[Any], context: Any) -> Iterator[Any]:
        message = next(messages)
        self.begun.release()
        try:
            while context.is_active():
                if self.mode == "fail" and self.parts >= 3:
                    yield pb.ModelStreamInferResponse(error_message=self.failure[1])
                    return
                yield pb.ModelStreamInferResponse(infer_response=self._reply(message))
                self.parts += 1
                time.sleep(self.pause_s)
        finally:  # where its caller does not read, it is ended at a yield
            if not context.is_active():
                self.cancelled.release()

    def _hang(self, context: Any) -> None:
        deadline = time.monotonic() + HANG_S
        while context.is_active() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not context.is_active():
            self.cancelled.release()

    def _reply(self, message: Any) -> Any:
        reply = pb.ModelInferResponse(model_name=message.model_name, model_version="1", id=message.id)
        reply.outputs.add(name="OUTPUT", datatype="FP32", shape=message.inputs[0].shape)
        reply.raw_output_contents.append(message.raw_input_contents[0])
        return reply
