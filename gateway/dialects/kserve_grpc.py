"""Open Inference Protocol over gRPC (``inference.GRPCInferenceService``), as ``tritonclient.grpc`` and
KServe's clients speak it, with ``grpc.health.v1`` and reflection. The key travels in call metadata.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog
import uuid_utils
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2 as pb

from gateway.access.credentials import find_credential
from gateway.access.idempotency import Answer as KeptAnswer
from gateway.dialects.headers import acceptable_request_id
from gateway.dialects.kserve_codec import EXTENSIONS
from gateway.dialects.kserve_codec import classify as classify_output
from gateway.dialects.kserve_grpc_codec import DecodedRequest, decode_request
from gateway.errors import (
    ClientClosed,
    Forbidden,
    GatewayError,
    Internal,
    Invalid,
    Malformed,
    NotFound,
    NotImplementedHere,
)
from gateway.pipeline import Pipeline
from gateway.triton.messages import set_parameters
from gateway.types import Call, InferenceResult, Scope

log = structlog.get_logger(__name__)

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

STATUS_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    402: grpc.StatusCode.RESOURCE_EXHAUSTED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Usual practice for each HTTP status of the error tree; any other is INTERNAL."""

Answer = Callable[[Any, Call], Awaitable[Any]]


class KserveGrpc:
    """The service's handlers; ``add_to`` registers them on a server."""

    name = "kserve_grpc"

    def __init__(self, pipeline: Pipeline, version: str) -> None:
        self._pipeline = pipeline
        self._version = version

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service, health and reflection."""
        unary: dict[str, tuple[Answer, Scope | None]] = {
            "ServerLive": (self.server_live, None),
            "ServerReady": (self.server_ready, None),
            "ServerMetadata": (self.server_metadata, "infer"),
            "ModelReady": (self.model_ready, "infer"),
            "ModelMetadata": (self.model_metadata, "infer"),
            "ModelConfig": (self.model_config, "infer"),
            "ModelStatistics": (self.model_statistics, "infer"),
            "ModelInfer": (self.model_infer, "infer"),
            "RepositoryIndex": (self.repository_index, "models:admin"),
            "RepositoryModelLoad": (self.load, "models:admin"),
            "RepositoryModelUnload": (self.unload, "models:admin"),
        }
        handlers: dict[str, grpc.RpcMethodHandler] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._unary(name, answer, scope),
                getattr(pb, f"{name}Request").FromString,
                getattr(pb, f"{name}Response").SerializeToString,
            )
            for name, (answer, scope) in unary.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self.model_stream_infer, pb.ModelInferRequest.FromString, pb.ModelStreamInferResponse.SerializeToString
        )
        health = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self.health_check,
                health_pb2.HealthCheckRequest.FromString,
                health_pb2.HealthCheckResponse.SerializeToString,
            )
        }
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, handlers),
                grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),
            )
        )
        reflection.enable_server_reflection((SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), server)

    # --- the way in

    def _unary(self, operation: str, answer: Answer, scope: Scope | None) -> Any:
        async def handle(message: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            call = self._call(operation, context)
            try:
                if scope is not None:
                    await self._authenticate(call, context, scope)
                call.bytes_in = message.ByteSize()
                if call.idempotency_key is not None and operation == "ModelInfer":
                    reply = await self._once(message, call, answer)
                else:
                    reply = await answer(message, call)
                call.bytes_out = reply.ByteSize()
                await self._pipeline.close(call)
            except asyncio.CancelledError as error:
                await self._pipeline.close(call, error)
                self._finished(call, ClientClosed.status)
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: logged and answered
                failure = await self._failed(error, call)
                self._finished(call, failure.status)
                await self._abort(context, failure, call)
            else:
                context.set_trailing_metadata(_trailers(call))
                self._finished(call, 200)
                return reply

        return handle

    async def _once(self, message: Any, call: Call, answer: Answer) -> Any:
        """The answer to a request with an idempotency key: the handler's, or the one that it gave before."""

        async def work() -> KeptAnswer:
            return KeptAnswer(200, (await answer(message, call)).SerializeToString())

        asked = (b"ModelInfer", message.SerializeToString(deterministic=True))
        kept = await self._pipeline.once(call, asked, work)
        call.headers.update(kept.headers)
        return pb.ModelInferResponse.FromString(kept.body)

    def _call(self, operation: str, context: grpc.aio.ServicerContext[Any, Any]) -> Call:
        metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        usage_id = str(uuid_utils.uuid7())
        call = Call(usage_id, usage_id, self.name, operation, client_address=_address(context.peer()))
        call.request_id = acceptable_request_id(metadata.get("x-request-id")) or usage_id
        call.idempotency_key = metadata.get("idempotency-key")
        call.trace_parent, call.trace_state = metadata.get("traceparent"), metadata.get("tracestate")
        remaining = context.time_remaining()
        settings = self._pipeline.settings
        self._pipeline.set_timeout(call, settings.default_timeout_s if remaining is None else remaining)
        return call

    async def _authenticate(self, call: Call, context: grpc.aio.ServicerContext[Any, Any], scope: Scope) -> None:
        metadata = context.invocation_metadata() or ()
        pairs = [(name.encode(), value.encode()) for name, value in metadata if isinstance(value, str)]
        call.credential = find_credential(pairs, {})
        try:
            await self._pipeline.authenticate(call, scope)
        except Forbidden:
            if scope == "models:admin" and call.principal is not None:
                raise NotFound("no such operation") from None  # as over HTTP: not even that it exists
            raise

    async def _failed(self, error: Exception, call: Call) -> GatewayError:
        """Close ``call``; what the client is told."""
        if not isinstance(error, GatewayError):
            log.error("request.failed", request_id=call.request_id, operation=call.operation, exc_info=error)
        try:
            await self._pipeline.close(call, error)
        except GatewayError as unrecorded:
            return unrecorded
        return error if isinstance(error, GatewayError) else Internal("internal error")

    async def _abort(self, context: grpc.aio.ServicerContext[Any, Any], error: GatewayError, call: Call) -> None:
        trailers = [*_trailers(call)]
        if error.retry_after_s is not None:
            trailers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
        code = STATUS_CODES.get(error.status, grpc.StatusCode.INTERNAL)
        await context.abort(code, error.message, tuple(trailers))

    def _finished(self, call: Call, code: int) -> None:
        self._pipeline.metrics.finished(call, code, (time.monotonic_ns() - call.received_ns) / 1e9)

    # --- server and repository

    async def server_live(self, _message: Any, _call: Call) -> Any:
        """The gateway runs."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _message: Any, _call: Call) -> Any:
        """Whether any model can be inferred."""
        ready = bool(self._pipeline.pool.ready_models()) and not self._pipeline.draining
        return pb.ServerReadyResponse(ready=ready)

    async def health_check(self, message: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """``grpc.health.v1``: for the empty service name and for this one."""
        if message.service not in {"", SERVICE}:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        states = health_pb2.HealthCheckResponse
        serving = bool(self._pipeline.pool.ready_models()) and not self._pipeline.draining
        return health_pb2.HealthCheckResponse(status=states.SERVING if serving else states.NOT_SERVING)

    async def server_metadata(self, _message: Any, _call: Call) -> Any:
        """Name, version, extensions."""
        return pb.ServerMetadataResponse(name="tidegate", version=self._version, extensions=EXTENSIONS)

    async def repository_index(self, message: Any, _call: Call) -> Any:
        """Models of the repository."""
        return await self._pipeline.pool.ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=message.ready))

    async def load(self, message: Any, call: Call) -> Any:
        """Load or reload a model, without overrides."""
        if message.parameters:
            raise Invalid("loading takes no configuration and no files over this API")
        await self._pipeline.change_model(call, message.model_name, "load")
        return pb.RepositoryModelLoadResponse()

    async def unload(self, message: Any, call: Call) -> Any:
        """Unload a model."""
        await self._pipeline.change_model(call, message.model_name, "unload")
        return pb.RepositoryModelUnloadResponse()

    # --- one model

    def _model(self, name: str, version: str, call: Call) -> None:
        self._pipeline.identify(call, name)
        if version and not (version.isascii() and version.isdigit()):
            raise NotFound("no such version")
        self._pipeline.pool.signature(name, version)

    async def model_ready(self, message: Any, call: Call) -> Any:
        """Whether it can be inferred now; one that nobody knows cannot, as at Triton."""
        self._pipeline.authorize(call, message.name)
        versions = self._pipeline.pool.versions(message.name)
        return pb.ModelReadyResponse(ready=message.version in versions if message.version else bool(versions))

    async def model_metadata(self, message: Any, call: Call) -> Any:
        """Inputs and outputs."""
        self._model(message.name, message.version, call)
        return await self._pipeline.pool.ask("ModelMetadata", message, message.name, message.version)

    async def model_config(self, message: Any, call: Call) -> Any:
        """Triton's configuration of the model."""
        self._model(message.name, message.version, call)
        return await self._pipeline.pool.ask("ModelConfig", message, message.name, message.version)

    async def model_statistics(self, message: Any, call: Call) -> Any:
        """Statistics of one model, or of all that the key may use."""
        if message.name:
            self._model(message.name, message.version, call)
            return await self._pipeline.pool.ask("ModelStatistics", message, message.name, message.version)
        reply = await self._pipeline.pool.ask("ModelStatistics", message)
        principal = call.principal
        visible = [entry for entry in reply.model_stats if principal is not None and principal.may_use(entry.name)]
        return pb.ModelStatisticsResponse(model_stats=visible)

    async def model_infer(self, message: Any, call: Call) -> Any:
        """Run one inference."""
        self._model(message.model_name, message.model_version, call)
        asked = decode_request(message)
        request = asked.request
        if self._pipeline.pool.signature(request.model, request.version).decoupled:
            raise NotImplementedHere("this model answers with a stream; use ModelStreamInfer")
        if asked.timeout_us:
            self._pipeline.set_timeout(call, asked.timeout_us / 1e6)
        return self._reply(await self._pipeline.infer(call, request), asked)

    def _reply(self, result: InferenceResult, asked: DecodedRequest) -> Any:
        request = asked.request
        batched = self._pipeline.pool.signature(request.model, request.version).max_batch_size > 0
        reply = pb.ModelInferResponse(model_name=result.model, model_version=result.version, id=request.id)
        for tensor in result.outputs:
            classes = asked.classes.get(tensor.name, 0)
            if classes:
                labels = self._pipeline.labels(request.model)
                tensor = classify_output(tensor, classes, labels, batched=batched)  # noqa: PLW2901
            reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(bytes(tensor.data))
        if result.parameters:
            set_parameters(reply.parameters, result.parameters)
        return reply

    # --- streams

    async def model_stream_infer(
        self, messages: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Each request of the stream is answered in its turn; each is metered as a call of its own.

        An error answers its request as ``error_message`` and the stream goes on, unless the client
        asked for a status with the metadata ``triton_grpc_error: true``.
        """
        by_status = ("triton_grpc_error", "true") in (context.invocation_metadata() or ())
        async for message in messages:
            call = self._call("ModelStreamInfer", context)
            code = 200
            try:
                await self._authenticate(call, context, "infer")
                if call.idempotency_key is not None:
                    raise Malformed("idempotency-key: a stream cannot be answered again; use ModelInfer")
                call.bytes_in = message.ByteSize()
                async for reply in self._stream_one(message, call):
                    call.bytes_out += reply.ByteSize()
                    if reply.infer_response.parameters["triton_final_response"].bool_param:
                        await self._pipeline.close(call)
                    yield reply
                await self._pipeline.close(call)
            except (asyncio.CancelledError, GeneratorExit) as error:
                await self._pipeline.close(call, error)
                self._finished(call, ClientClosed.status)
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: logged and answered
                failure = await self._failed(error, call)
                code = failure.status
                if by_status or code in {401, 403}:
                    self._finished(call, code)
                    await self._abort(context, failure, call)
                failed = pb.ModelStreamInferResponse(error_message=failure.message)
                failed.infer_response.id = message.id
                yield failed
            self._finished(call, code)

    async def _stream_one(self, message: Any, call: Call) -> AsyncIterator[Any]:
        final_wanted = message.parameters["triton_enable_empty_final_response"].bool_param
        del message.parameters["triton_enable_empty_final_response"]
        self._model(message.model_name, message.model_version, call)
        asked = decode_request(message)
        request = asked.request
        if asked.timeout_us:
            self._pipeline.set_timeout(call, asked.timeout_us / 1e6)
        signature = self._pipeline.pool.signature(request.model, request.version)
        if not signature.decoupled:
            reply = self._reply(await self._pipeline.infer(call, request), asked)
            if final_wanted:
                reply.parameters["triton_final_response"].bool_param = True
            yield pb.ModelStreamInferResponse(infer_response=reply)
            return
        async for result in self._pipeline.stream(call, request):
            yield pb.ModelStreamInferResponse(infer_response=self._reply(result, asked))
        if final_wanted:
            last = pb.ModelInferResponse(model_name=request.model, model_version=request.version, id=request.id)
            last.parameters["triton_final_response"].bool_param = True
            yield pb.ModelStreamInferResponse(infer_response=last)


def _trailers(call: Call) -> tuple[tuple[str, str], ...]:
    trailers = [("x-request-id", call.request_id)]
    if call.model:
        trailers.append(("x-tidegate-usage-id", call.usage_id))
    trailers += [(name.lower(), value) for name, value in call.headers.items()]
    return tuple(trailers)


def _address(peer: str) -> str:
    """The address in gRPC's ``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return ""
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
