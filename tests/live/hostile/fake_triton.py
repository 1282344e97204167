"""A server that speaks Triton's gRPC, and infers over HTTP too, counts what it is asked, and misbehaves as it is told:
for what the real one cannot be made to do on command, and for proof that nothing was asked at all.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as pb

from tests.live.hostile.fake_http import HttpFace

SERVICE = "inference.GRPCInferenceService"
MODELS = {"identity": False, "stream": True, "texts": False, "text-stream": True}
"""Name → whether it is decoupled. ``text`` in the name: 1 BYTES, otherwise 64 FP32; the output is the input."""
HANG_S = 30.0


class FakeTriton(grpc.GenericRpcHandler):
    """One server. ``mode``: ``echo``, ``hang`` until the caller goes or the mode changes, ``fail`` with ``failure``, or
    ``garbage``: the reply after ``damage`` has had its way with it. Of ``version`` 2.58 it is told of cancellations.
    """

    def __init__(self, version: str = "2.58.0") -> None:
        self.version = version
        self.failure = (grpc.StatusCode.INTERNAL, "")
        self.damage: Callable[[Any], Any] = lambda _reply: None
        """Changes the reply, or returns bytes to send in its place."""
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.reset()
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=(self,), options=(("grpc.so_reuseport", 0),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._http = HttpFace(self._infer, self._count)
        self.target = f"{self.address}/{self._http.server_address[1]}"
        """For a gateway that infers over HTTP; ``address`` is for one that does everything over gRPC."""

    def reset(self) -> None:
        """Echo again, and forget what was noted for earlier tests."""
        self.mode = "echo"
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.parts = 0
        """Sent by streams, in all."""
        self.pause_s = 0.02
        """Between two of them."""
        self.max_batch_size = 64

    def close(self) -> None:
        """Stop serving."""
        self._server.stop(None).wait()
        self._http.close()

    def beyond_probes(self) -> dict[str, int]:
        """What was asked, but for what a gateway asks by itself all the time."""
        own = {"RepositoryIndex", "ModelConfig", "ModelStatistics", "ServerMetadata"}
        return {method: count for method, count in self.asked.items() if method not in own}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of any method; every call is counted."""
        name = details.method.rpartition("/")[2]
        self._count(name)
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream, pb.ModelInferRequest.FromString, _serialised)
        answer = {
            "RepositoryIndex": self._index, "ModelConfig": self._config, "ModelInfer": self._infer,
            "ModelStatistics": lambda _message, _context: pb.ModelStatisticsResponse(),
            "ServerMetadata": lambda _message, _context: pb.ServerMetadataResponse(name="fake", version=self.version),
        }.get(name)  # fmt: skip
        if answer is None:
            return None  # UNIMPLEMENTED, and counted
        return grpc.unary_unary_rpc_method_handler(answer, getattr(pb, f"{name}Request").FromString, _serialised)

    def _count(self, method: str) -> None:
        with self._lock:
            self.asked[method] += 1

    def _index(self, _message: Any, _context: Any) -> Any:
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(name=name, version="1", state="READY") for name in MODELS]
        )

    def _config(self, message: Any, _context: Any) -> Any:
        kind, size = (config_pb.TYPE_STRING, 1) if "text" in message.name else (config_pb.TYPE_FP32, 64)
        config = config_pb.ModelConfig(name=message.name, max_batch_size=self.max_batch_size)
        config.input.add(name="INPUT", data_type=kind, dims=[size])
        config.output.add(name="OUTPUT", data_type=kind, dims=[size])
        config.dynamic_batching.SetInParent()
        config.model_transaction_policy.decoupled = MODELS[message.name]
        return pb.ModelConfigResponse(config=config)

    def _infer(self, message: Any, context: Any) -> Any:
        self.begun.release()
        if self.mode == "fail":
            context.abort(*self.failure)
        if self.mode == "hang":
            self._hang(context)
        return self._damaged(message) if self.mode == "garbage" else self._reply(message)

    def _stream(self, messages: Iterator[Any], context: Any) -> Iterator[Any]:
        message = next(messages)
        self.begun.release()
        try:
            while context.is_active():
                if self.mode == "garbage" and self.parts >= 1:
                    reply = self._damaged(message)
                    yield reply if isinstance(reply, bytes) else pb.ModelStreamInferResponse(infer_response=reply)
                    return
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
        while context.is_active() and self.mode == "hang" and time.monotonic() < deadline:
            time.sleep(0.01)
        if not context.is_active():
            self.cancelled.release()

    def _reply(self, message: Any) -> Any:
        reply = pb.ModelInferResponse(model_name=message.model_name, model_version="1", id=message.id)
        reply.outputs.add(name="OUTPUT", datatype=message.inputs[0].datatype, shape=message.inputs[0].shape)
        reply.raw_output_contents.append(message.raw_input_contents[0])
        return reply

    def _damaged(self, message: Any) -> Any:
        reply = self._reply(message)
        changed = self.damage(reply)
        return changed if isinstance(changed, bytes) else reply


def _serialised(reply: Any) -> bytes:
    return reply if isinstance(reply, bytes) else bytes(reply.SerializeToString())
