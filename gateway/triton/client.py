"""One Triton server over gRPC: its calls, and its failures told apart.

What matters to the caller of a failed inference is whether it may have been executed:
:class:`NotExecuted` may be tried on another server, everything else may not.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid, NotFound, Unavailable
from gateway.triton.messages import decode_response, encode_request
from gateway.triton.statistics import ModelStatistics
from gateway.types import InferenceRequest, InferenceResult

MAX_MESSAGE_BYTES = 2**31 - 1
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)

# The texts below are those of gRPC's core and of Triton 2.51 to 2.6x; an unknown one falls to the
# careful side: "may have been executed".
_NOT_CONNECTED = re.compile(
    r"failed to connect|connections to all backends failing|name resolution|empty address list", re.I
)
_SHED = re.compile(r"exceeds maximum queue size|request timeout expired|queue.*(full|timeout)", re.I)
_NOT_READY = re.compile(
    r"unknown model|is not ready|not found|no version is available|stub process|not healthy|"
    r"server not ready|shutting down",
    re.I,
)


class NotExecuted(Unavailable):
    """The server was not reached: another one may be tried."""


class ModelFailed(BadUpstream):
    """Triton answered that the model raised an error: the request has no result, and is over."""


class TritonServer:
    """A Triton server at ``target`` (host:port of its gRPC endpoint)."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        await self._channel.close(grace=None)

    async def infer(
        self, request: InferenceRequest, timeout_s: float | None, metadata: tuple[tuple[str, str], ...] = ()
    ) -> InferenceResult:
        """Run one inference. Cancelling the task cancels it on the server.

        Raises :class:`NotExecuted`, or another :class:`~gateway.errors.GatewayError`.
        """
        try:
            message = await self._stub.ModelInfer(encode_request(request), timeout=timeout_s, metadata=metadata)
            return decode_response(message)
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        except ValueError as error:
            raise BadUpstream("the inference server's answer could not be read") from error

    async def stream(self, request: InferenceRequest, timeout_s: float | None) -> AsyncIterator[InferenceResult]:
        """Results of a decoupled model, in order, until its final response.

        Raises like :meth:`infer`; an error may come after results.
        """
        message = encode_request(request)
        message.parameters["triton_enable_empty_final_response"].bool_param = True

        async def requests() -> AsyncIterator[pb.ModelInferRequest]:
            yield message

        call = self._stub.ModelStreamInfer(requests(), timeout=timeout_s)
        try:
            async for reply in call:
                if reply.error_message:
                    raise _translate_text(reply.error_message)
                final = reply.infer_response.parameters["triton_final_response"].bool_param
                if reply.infer_response.outputs:
                    yield decode_response(reply.infer_response)
                if final:
                    return
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        finally:
            call.cancel()

    async def ready_models(self, timeout_s: float) -> frozenset[tuple[str, str]]:
        """(model, version) pairs that can be inferred now. Raises :class:`Unavailable`."""
        index = await self._call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), timeout_s)
        return frozenset((model.name, model.version) for model in index.models if model.state == "READY")

    async def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        """Totals of every loaded model."""
        reply = await self._call("ModelStatistics", pb.ModelStatisticsRequest(), timeout_s)
        return [
            ModelStatistics(
                server=self.target,
                model=model.name,
                version=model.version,
                inference_count=model.inference_count,
                execution_count=model.execution_count,
                cache_hit_count=model.inference_stats.cache_hit.count,
                queue_ns=model.inference_stats.queue.ns,
                # Of batches, not of requests: those count a batch's time once for each request in it.
                compute_input_ns=sum(batch.compute_input.ns for batch in model.batch_stats),
                compute_infer_ns=sum(batch.compute_infer.ns for batch in model.batch_stats),
                compute_output_ns=sum(batch.compute_output.ns for batch in model.batch_stats),
            )
            for model in reply.model_stats
        ]

    async def ask(self, method: str, message: Any, timeout_s: float) -> Any:
        """Any other unary call of the service, by its protobuf name and message.

        Raises a :class:`~gateway.errors.GatewayError`.
        """
        return await self._call(method, message, timeout_s)

    async def _call(self, method: str, message: Any, timeout_s: float) -> Any:
        try:
            return await getattr(self._stub, method)(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error


def translate(error: grpc.aio.AioRpcError) -> GatewayError:
    """Our error for Triton's or gRPC's. Triton's own text never leaves: it names paths and hosts."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and _NOT_CONNECTED.search(details):
        return NotExecuted("the inference server cannot be reached", retry_after_s=1.0)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the deadline passed before the model answered")
    if code == grpc.StatusCode.UNAVAILABLE and not (_SHED.search(details) or _NOT_READY.search(details)):
        return BadUpstream("the connection to the inference server broke; the request may have been executed")
    return _translate_text(details, code)


def _translate_text(details: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> GatewayError:
    if _SHED.search(details):
        return Unavailable("the model's queue is full", retry_after_s=1.0)
    if _NOT_READY.search(details):
        return Unavailable("the model is not ready", retry_after_s=1.0)
    if code == grpc.StatusCode.NOT_FOUND:
        return NotFound("no such model or version")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return Invalid("the model does not accept this input")
    return ModelFailed("the model failed on this request")
