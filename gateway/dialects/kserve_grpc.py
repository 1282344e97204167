"""Open Inference Protocol over gRPC (``inference.GRPCInferenceService``), as ``tritonclient.grpc`` and
KServe's clients speak it, with ``grpc.health.v1`` and reflection. The key travels in call metadata.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import structlog
import uuid_utils
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from tritonclient.grpc import service_pb2 as pb

from gateway.access.credentials import find_credential
from gateway.access.idempotency import Answer as KeptAnswer
from gateway.dialects.body import LONG_BODY
from gateway.dialects.headers import acceptable_request_id
from gateway.dialects.kserve_codec import EXTENSIONS
from gateway.dialects.kserve_codec import classify as classify_output
from gateway.dialects.kserve_grpc_codec import DecodedRequest, decode_request
from gateway.dialects.kserve_grpc_wire import parse_infer
from gateway.dialects.labels import Labels
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
from gateway.http2.rpc import Methods, RpcStream, StatusError
from gateway.pipeline import Pipeline
from gateway.triton.messages import set_parameters
from gateway.triton.signature import Signature
from gateway.types import Call, InferenceResult, Scope

log = structlog.get_logger(__name__)

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"
REFLECTION_SERVICES = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")
"""The same messages under two names: tools ask for the later one first."""
WATCH_S = 0.5
"""Between two looks at whether health has changed."""
MAX_WATCHES = 256
"""Watches of health at once: they take no key."""

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

_SERVICE_UNKNOWN = bytes(
    health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()
)


class KserveGrpc:
    """The service's handlers, for :class:`~gateway.http2.server.RpcServer`."""

    name = "kserve_grpc"

    def __init__(self, pipeline: Pipeline, version: str) -> None:
        self._pipeline = pipeline
        self._version = version
        self._labels = Labels(pipeline)
        self._reflection = reflection.aio.ReflectionServicer((SERVICE, HEALTH_SERVICE, *REFLECTION_SERVICES))
        self._guarded: dict[str, tuple[str, Scope]] = {}
        """Operation and scope by path, of all methods that need a key."""
        self._watches = 0

    def methods(self) -> Methods:
        """The handlers by path: the service, health and reflection."""
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
        scopes = {name: scope for name, (_, scope) in unary.items()} | {"ModelStreamInfer": "infer"}
        self._guarded = {f"/{SERVICE}/{name}": (name, scope) for name, scope in scopes.items() if scope is not None}
        parsers: dict[str, Callable[[bytes], Any]] = {
            name: partial(_parsed, getattr(pb, f"{name}Request").FromString) for name in unary
        } | {"ModelInfer": parse_infer}
        handlers = {
            f"/{SERVICE}/{name}": self._unary(name, answer, parsers[name]) for name, (answer, _) in unary.items()
        }
        return Methods(
            {**handlers, f"/{HEALTH_SERVICE}/Check": self.health_check},
            {
                f"/{SERVICE}/ModelStreamInfer": self.model_stream_infer,
                f"/{HEALTH_SERVICE}/Watch": self.health_watch,
                **{f"/{name}/ServerReflectionInfo": self.reflect for name in REFLECTION_SERVICES},
            },
            self.admit,
        )

    # --- the way in

    async def admit(self, stream: RpcStream) -> bool:
        """Authenticate a call by its headers, as over HTTP: nothing of a stranger's message is read."""
        guarded = self._guarded.get(stream.head.path)
        if guarded is None:
            return False
        operation, scope = guarded
        call = self._call(operation, stream)
        try:
            await self._authenticate(call, stream, scope)
        except asyncio.CancelledError:
            self._finished(call, ClientClosed.status)
            raise
        except Exception as error:
            failure = await self._failed(error, call)
            self._finished(call, failure.status)
            raise _status(failure, call) from error
        stream.context = call
        return True

    def _unary(self, operation: str, answer: Answer, parse: Callable[[bytes], Any]) -> Any:
        async def handle(stream: RpcStream, body: bytes) -> bytes:
            call = self._call(operation, stream) if stream.context is None else stream.context
            try:
                call.bytes_in = len(body)
                message = parse(body)
                if call.idempotency_key is not None and operation == "ModelInfer":
                    reply = await self._once(message, call, answer)
                else:
                    reply = (await answer(message, call)).SerializeToString()
                call.bytes_out = len(reply)
                await self._pipeline.close(call)
            except asyncio.CancelledError as error:
                await self._pipeline.close(call, error)
                self._finished(call, ClientClosed.status)
                raise
            except Exception as error:
                failure = await self._failed(error, call)
                self._finished(call, failure.status)
                raise _status(failure, call) from error
            stream.trailers = _trailers(call)
            self._finished(call, 200)
            return reply

        return handle

    async def _once(self, message: Any, call: Call, answer: Answer) -> bytes:
        """The answer to a request with an idempotency key: the handler's, or the one that it gave before."""

        async def work() -> KeptAnswer:
            return KeptAnswer(200, (await answer(message, call)).SerializeToString())

        asked = (b"ModelInfer", message.SerializeToString(deterministic=True))
        kept = await self._pipeline.once(call, asked, work)
        call.headers.update(kept.headers)
        return kept.body

    def _call(self, operation: str, stream: RpcStream) -> Call:
        metadata = stream.head.metadata
        usage_id = str(uuid_utils.uuid7())
        call = Call(usage_id, usage_id, self.name, operation, client_address=stream.peer)
        call.request_id = acceptable_request_id(metadata.get("x-request-id")) or usage_id
        call.idempotency_key = metadata.get("idempotency-key")
        call.trace_parent, call.trace_state = metadata.get("traceparent"), metadata.get("tracestate")
        remaining = stream.head.timeout_s
        self._pipeline.set_timeout(call, self._pipeline.settings.default_timeout_s if remaining is None else remaining)
        return call

    async def _authenticate(self, call: Call, stream: RpcStream, scope: Scope) -> None:
        call.credential = find_credential(stream.head.fields, {})
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

    async def health_check(self, _stream: RpcStream, body: bytes) -> bytes:
        """``grpc.health.v1``: for the empty service name and for this one."""
        if _parsed(health_pb2.HealthCheckRequest.FromString, body).service not in {"", SERVICE}:
            raise StatusError(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._health()

    async def health_watch(self, _stream: RpcStream, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The same whenever it changes, until the client or the gateway goes; of other services: not known."""
        if self._watches >= MAX_WATCHES:
            raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches; use Check")
        self._watches += 1
        try:
            async for body in messages:
                known = _parsed(health_pb2.HealthCheckRequest.FromString, body).service in {"", SERVICE}
                said = b""
                while not (said and self._pipeline.draining):
                    now = self._health() if known else _SERVICE_UNKNOWN
                    if now != said:
                        said = now
                        yield now
                    await asyncio.sleep(WATCH_S)
        finally:
            self._watches -= 1

    def _health(self) -> bytes:
        states = health_pb2.HealthCheckResponse
        serving = bool(self._pipeline.pool.ready_models()) and not self._pipeline.draining
        return bytes(states(status=states.SERVING if serving else states.NOT_SERVING).SerializeToString())

    async def reflect(self, _stream: RpcStream, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Server reflection: what the services and their messages are."""
        requests = (reflection_pb2.ServerReflectionRequest.FromString(body) async for body in messages)
        async for reply in self._reflection.ServerReflectionInfo(requests, None):
            yield reply.SerializeToString()

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
        dependents = message.parameters["unload_dependents"].bool_param
        await self._pipeline.change_model(call, message.model_name, "unload", unload_dependents=dependents)
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
        signature = self._pipeline.pool.signature(message.model_name, message.model_version)
        if signature.decoupled:
            raise NotImplementedHere("this model answers with a stream; use ModelStreamInfer")
        asked = await self._decoded(message, signature, call)
        if asked.timeout_us:
            self._pipeline.set_timeout(call, asked.timeout_us / 1e6)
        return self._reply(await self._pipeline.infer(call, asked.request), asked)

    async def _decoded(self, message: Any, signature: Signature, call: Call) -> DecodedRequest:
        typed = not message.raw_input_contents
        return await self._pipeline.prepared(
            call,
            lambda: decode_request(message, signature),
            long=typed and call.bytes_in > LONG_BODY,
        )

    def _reply(self, result: InferenceResult, asked: DecodedRequest) -> Any:
        request = asked.request
        signature = self._pipeline.pool.signature(request.model, request.version)
        batched = signature.max_batch_size > 0
        reply = pb.ModelInferResponse(model_name=result.model, model_version=result.version, id=request.id)
        for tensor in result.outputs:
            classes = asked.classes.get(tensor.name, 0)
            if classes:
                labels = self._labels.of(request.model, signature, tensor.name)
                tensor = classify_output(tensor, classes, labels, batched=batched)  # noqa: PLW2901
            reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            reply.raw_output_contents.append(bytes(tensor.data))
        if result.parameters:
            set_parameters(reply.parameters, result.parameters)
        return reply

    # --- streams

    async def model_stream_infer(
        self, stream: RpcStream, messages: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Each request of the stream is answered in its turn; each is metered as a call of its own.

        An error answers its request as ``error_message`` and the stream goes on, unless the client
        asked for a status with the metadata ``triton_grpc_error: true``.
        """
        by_status = stream.head.metadata.get("triton_grpc_error") == "true"
        async for body in messages:
            call = self._call("ModelStreamInfer", stream)
            code, identity = 200, ""
            try:
                await self._authenticate(call, stream, "infer")
                if call.idempotency_key is not None:
                    raise Malformed("idempotency-key: a stream cannot be answered again; use ModelInfer")
                call.bytes_in = len(body)
                message = parse_infer(body)
                identity = message.id
                async for reply, last in self._stream_one(message, call):
                    sent = reply.SerializeToString()
                    call.bytes_out += len(sent)
                    if last:
                        await self._pipeline.close(call)
                    yield sent
                await self._pipeline.close(call)
            except (asyncio.CancelledError, GeneratorExit) as error:
                await self._pipeline.close(call, error)
                self._finished(call, ClientClosed.status)
                raise
            except Exception as error:
                failure = await self._failed(error, call)
                code = failure.status
                if by_status or code in {401, 403}:
                    self._finished(call, code)
                    raise _status(failure, call) from error
                failed = pb.ModelStreamInferResponse(error_message=failure.message)
                failed.infer_response.id = identity
                yield failed.SerializeToString()
            self._finished(call, code)

    async def _stream_one(self, message: Any, call: Call) -> AsyncIterator[tuple[Any, bool]]:
        """The answers to one request, and of each whether it is known to be the last."""
        final_wanted = message.parameters["triton_enable_empty_final_response"].bool_param
        del message.parameters["triton_enable_empty_final_response"]
        self._model(message.model_name, message.model_version, call)
        signature = self._pipeline.pool.signature(message.model_name, message.model_version)
        asked = await self._decoded(message, signature, call)
        request = asked.request
        if asked.timeout_us:
            self._pipeline.set_timeout(call, asked.timeout_us / 1e6)
        if not signature.decoupled:
            reply = self._reply(await self._pipeline.infer(call, request), asked)
            if final_wanted:
                reply.parameters["triton_final_response"].bool_param = True
            yield pb.ModelStreamInferResponse(infer_response=reply), True
            return
        async for result in self._pipeline.stream(call, request):
            yield pb.ModelStreamInferResponse(infer_response=self._reply(result, asked)), False
        if final_wanted:
            last = pb.ModelInferResponse(model_name=request.model, model_version=request.version, id=request.id)
            last.parameters["triton_final_response"].bool_param = True
            yield pb.ModelStreamInferResponse(infer_response=last), True


def _trailers(call: Call) -> tuple[tuple[str, str], ...]:
    trailers = [("x-request-id", call.request_id)]
    if call.model:
        trailers.append(("x-tidegate-usage-id", call.usage_id))
    trailers += [(name.lower(), value) for name, value in call.headers.items()]
    return tuple(trailers)


def _parsed(parse: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return parse(body)
    except DecodeError as error:
        raise Malformed("the message is not what the method takes") from error


def _status(error: GatewayError, call: Call) -> StatusError:
    trailers = [*_trailers(call)]
    if error.retry_after_s is not None:
        trailers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    return StatusError(STATUS_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, trailers)
