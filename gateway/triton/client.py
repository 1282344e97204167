"""One Triton server: its calls over gRPC, and its inferences over HTTP where its HTTP port is known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.errors import BadUpstream, GatewayError
from gateway.settings import TritonAddress
from gateway.triton.failures import NOT_CONNECTED, NotExecuted, is_refusal, translate_text
from gateway.triton.http import HttpInference
from gateway.triton.messages import decode_response, encode_request
from gateway.triton.statistics import ModelStatistics
from gateway.triton.unwanted import Unwanted, late, takes_cancellation
from gateway.types import InferenceRequest, InferenceResult

MAX_MESSAGE_BYTES = 2**31 - 1
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_GRACE_S = 300.0

logging.getLogger("grpc._common").setLevel(logging.CRITICAL)  # it would log a stack for every answer it cannot parse


class TritonServer:
    """A Triton server at ``address``: ``host:port`` of its gRPC endpoint, or ``host:port/http_port``.

    With ``http_port``, inferences travel over HTTP, which costs a fraction of gRPC's Python layer
    (docs/decisions/0003); everything else, and what HTTP cannot carry, goes over gRPC.
    """

    def __init__(self, address: str, connect_timeout_s: float = 2.0, cancel_since: str = "2.58") -> None:
        """``cancel_since``: version from which a Triton is told of cancellations (:mod:`gateway.triton.unwanted`)."""
        parsed = TritonAddress.parse(address)
        self.target = parsed.target
        """host:port of the gRPC endpoint."""
        self._http = HttpInference(parsed.host, parsed.http_port, connect_timeout_s) if parsed.http_port else None
        connect_ms = int(connect_timeout_s * 1000)
        self._options = (
            *_OPTIONS,
            # What gRPC calls the least time between two attempts is also how long one of them may take.
            ("grpc.min_reconnect_backoff_ms", connect_ms),
            # A name server that does not answer would be waited for two minutes.
            ("grpc.dns_ares_query_timeout", connect_ms),
            ("grpc.dns_min_time_between_resolutions_ms", connect_ms),
        )
        self._retired: set[asyncio.Task[None]] = set()
        self._cancel_since, self._cancels = cancel_since, False
        self._unwanted = Unwanted()
        self._open()

    def _open(self) -> None:
        self._channel = grpc.aio.insecure_channel(self.target, options=self._options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @property
    def unwanted(self) -> int:
        """Calls that nobody waits for, and which it was not told to end."""
        return len(self._unwanted)

    async def meet(self, timeout_s: float) -> None:
        """Ask which version it is: to be called when it has come, or come back. Raises a ``GatewayError``."""
        self._cancels = False  # until it has said so
        metadata = await self._call("ServerMetadata", pb.ServerMetadataRequest(), timeout_s)
        self._cancels = takes_cancellation(metadata.version, self._cancel_since)

    def reconnect(self) -> None:
        """Use a new connection from now on: the old one is silent. Calls that wait on it go on waiting."""
        retired = asyncio.create_task(self._channel.close(grace=_GRACE_S))
        self._retired.add(retired)
        retired.add_done_callback(self._retired.discard)
        if self._http is not None:
            self._http.forget()
        self._open()

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        for task in self._retired:
            task.cancel()
        await asyncio.gather(self._unwanted.close(), *self._retired, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        await self._channel.close(grace=None)

    async def infer(
        self, request: InferenceRequest, timeout_s: float | None, metadata: tuple[tuple[str, str], ...] = ()
    ) -> InferenceResult:
        """Run one inference. Cancelling the task cancels it on the server, if that takes it.

        Raises :class:`NotExecuted`, or another :class:`~gateway.errors.GatewayError`.
        """
        if self._http is not None and self._http.can_carry(request):
            return await self._http.infer(request, timeout_s, metadata)
        try:
            if self._cancels:
                message = await self._stub.ModelInfer(encode_request(request), timeout=timeout_s, metadata=metadata)
            else:
                call = self._stub.ModelInfer(encode_request(request), metadata=metadata)
                message = await self._unwanted.next(call, timeout_s)
            return decode_response(_parsed(message))
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        except ValueError as error:
            raise BadUpstream("the inference server's answer could not be read") from error

    async def stream(self, request: InferenceRequest, timeout_s: float | None) -> AsyncIterator[InferenceResult]:
        """Results of a decoupled model, in order, until its final response.

        Raises like :meth:`infer`; an error may come after results.
        """
        asked = encode_request(request)
        asked.parameters["triton_enable_empty_final_response"].bool_param = True

        async def requests() -> AsyncIterator[pb.ModelInferRequest]:
            yield asked

        loop = asyncio.get_running_loop()
        end = None if timeout_s is None else loop.time() + timeout_s
        call = self._stub.ModelStreamInfer(requests(), timeout=timeout_s if self._cancels else None)
        over = False
        try:
            while True:
                left_s = None if end is None else end - loop.time()
                message = await (call.read() if self._cancels else self._unwanted.next(call, left_s))
                if message is grpc.aio.EOF:
                    raise BadUpstream("the inference server's answer ended before its last part")
                reply = _parsed(message)
                if reply.error_message:
                    raise translate_text(reply.error_message)
                if reply.infer_response.outputs:
                    yield decode_response(reply.infer_response)
                if reply.infer_response.parameters["triton_final_response"].bool_param:
                    return
        except grpc.aio.AioRpcError as error:
            over = True
            raise translate(error) from error
        except ValueError as error:
            raise BadUpstream("the inference server's answer could not be read") from error
        finally:
            if self._cancels:
                call.cancel()
            elif not over:
                self._unwanted.leave(call)

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
            return _parsed(await getattr(self._stub, method)(message, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise translate(error) from error
        except ValueError as error:
            raise BadUpstream("the inference server's answer could not be read") from error


def _parsed(message: Any) -> Any:
    """``message``, which grpcio says is None where it cannot parse it. Raises ``ValueError``."""
    if message is None:
        raise ValueError("not the protocol")
    return message


def translate(error: grpc.aio.AioRpcError) -> GatewayError:
    """Our error for Triton's or gRPC's. Triton's own text never leaves: it names paths and hosts."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and NOT_CONNECTED.search(details):
        return NotExecuted("the inference server cannot be reached", retry_after_s=1.0)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return late()
    if code == grpc.StatusCode.UNAVAILABLE and not is_refusal(details):
        return BadUpstream("the connection to the inference server broke; the request may have been executed")
    return translate_text(details, code)
