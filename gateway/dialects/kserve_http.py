"""Open Inference Protocol over HTTP (``/v2``), with Triton's extensions: what ``tritonclient.http``
and KServe's clients speak. Errors are ``{"error": "<string>"}``.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Literal

import msgspec
from tritonclient.grpc import service_pb2 as pb

from gateway.dialects import kserve_schemas as schemas
from gateway.dialects.body import LONG_BODY
from gateway.dialects.http import Handler, Request, Response, Route
from gateway.dialects.json import decode_json
from gateway.dialects.kserve_codec import EXTENSIONS, clean_parameters, decode_infer, encode_infer, raw_data
from gateway.dialects.labels import Labels
from gateway.dialects.protobuf_json import to_json
from gateway.errors import GatewayError, Invalid, NotFound, NotImplementedHere, UnsupportedMediaType
from gateway.pipeline import Pipeline
from gateway.triton.signature import Signature, TensorSignature
from gateway.triton.tensors import to_numpy
from gateway.types import Call, InferenceRequest, InferenceResult, Tensor

BINARY = "application/octet-stream"
_CONTENT_TYPES = frozenset({None, "application/json", BINARY, "application/x-www-form-urlencoded"})
"""None is tritonclient's; the last is what curl calls the JSON behind its ``-d``."""


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    ready: bool = False


class KserveHttp:
    """The dialect. ``version`` is the gateway's, for server metadata."""

    name = "kserve_http"
    error_schema = schemas.ERROR

    def __init__(self, pipeline: Pipeline, version: str) -> None:
        self._pipeline = pipeline
        self._version = version
        self._labels = Labels(pipeline)

    def encode_error(self, error: GatewayError, call: Call) -> Response:  # noqa: ARG002
        """``{"error": "<string>"}``: an object there breaks tritonclient's exception."""
        return Response(error.status, msgspec.json.encode({"error": error.message}))

    @property
    def routes(self) -> list[Route]:
        """Every operation under ``/v2``."""
        tags = ("Open Inference Protocol",)

        named = {"model": "identity", "version": "1"}

        def get(path: str, operation: str, handler: Any, summary: str, schema: Any = None, **more: Any) -> Route:
            media_types = () if schema is None else ("application/json",)
            return Route(
                "GET", path, operation, handler, summary=summary, tags=tags, response_schema=schema,
                response_media_types=media_types, path_example=named, **more,
            )  # fmt: skip

        def post(path: str, operation: str, handler: Any, summary: str, request: Any, **more: Any) -> Route:
            return Route(
                "POST", path, operation, _typed(handler), summary=summary, tags=tags, request_schema=request,
                path_example=named, **more,
            )  # fmt: skip

        loaded: dict[str, Any] = {"request_required": False, "response_media_types": (), "inference": False}
        routes = [
            get("/v2", "server_metadata", self.server_metadata, "Name, version and extensions", schemas.SERVER),
            get("/v2/health/live", "server_live", self.server_live, "Whether the gateway runs", scope=None),
            get(
                "/v2/health/ready", "server_ready", self.server_ready, "Whether models can be inferred",
                scope=None, failures={503: None},
            ),
            get("/v2/models/stats", "statistics", self.statistics, "Statistics of all models", schemas.STATISTICS),
            post(
                "/v2/repository/index", "repository_index", self.repository_index, "Models of the repository",
                schemas.INDEX, request_required=False, response_schema=schemas.INDEX_ANSWER, inference=False,
            ),
            post(
                "/v2/repository/models/{model}/load", "load", self.load, "Load or reload a model", schemas.LOAD,
                **loaded,
            ),
            post(
                "/v2/repository/models/{model}/unload", "unload", self.unload, "Unload a model", schemas.LOAD,
                **loaded,
            ),
        ]  # fmt: skip
        for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                get(prefix, "model_metadata", self.model_metadata, "Inputs and outputs of a model", schemas.MODEL),
                get(f"{prefix}/ready", "model_ready", self.model_ready, "Whether a model can be inferred"),
                get(
                    f"{prefix}/config", "model_config", self.model_config, "Triton's configuration of a model",
                    schemas.CONFIGURATION,
                ),
                get(f"{prefix}/stats", "statistics", self.statistics, "Statistics of a model", schemas.STATISTICS),
                post(
                    f"{prefix}/infer", "infer", self.infer, "Run an inference", schemas.INFER,
                    request_media_types=("application/json", BINARY), response_schema=schemas.INFER_ANSWER,
                    response_media_types=("application/json", BINARY), example=schemas.INFER_EXAMPLE,
                ),
                post(
                    f"{prefix}/generate", "generate", self.generate, "Run an inference on plain JSON",
                    schemas.GENERATE, response_schema=schemas.GENERATE_ANSWER, example={"INPUT": [0.5] * 64},
                ),
                post(
                    f"{prefix}/generate_stream", "generate_stream", self.generate_stream, "The same as events",
                    schemas.GENERATE, response_media_types=("text/event-stream",), example={"INPUT": [0.5] * 64},
                ),
            ]  # fmt: skip
        return routes

    # --- server and repository

    async def server_metadata(self, _request: Request, _call: Call) -> Response:
        """``GET /v2``."""
        return _json({"name": "tidegate", "version": self._version, "extensions": [*EXTENSIONS, "generate"]})

    async def server_live(self, _request: Request, _call: Call) -> Response:
        """``GET /v2/health/live``."""
        return Response(200, b"", media_type=None)

    async def server_ready(self, _request: Request, _call: Call) -> Response:
        """``GET /v2/health/ready``: 200 or 503."""
        ready = bool(self._pipeline.pool.ready_models()) and not self._pipeline.draining
        return Response(200 if ready else 503, b"", media_type=None)

    async def repository_index(self, request: Request, call: Call) -> Response:
        """``POST /v2/repository/index``; the body may be empty."""
        self._require_admin(call)
        wanted = decode_json(request.body, _Index) if request.body.strip() else _Index()
        reply = await self._pipeline.pool.ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=wanted.ready))
        return _json([{name: value for name, value in to_json(model).items() if value} for model in reply.models])

    async def load(self, request: Request, call: Call) -> Response:
        """``POST /v2/repository/models/{model}/load``, without any override of files or configuration."""
        await self._change(request, call, "load")
        return Response(200, b"", media_type=None)

    async def unload(self, request: Request, call: Call) -> Response:
        """``POST /v2/repository/models/{model}/unload``."""
        await self._change(request, call, "unload")
        return Response(200, b"", media_type=None)

    async def _change(self, request: Request, call: Call, action: Literal["load", "unload"]) -> None:
        self._require_admin(call)
        body = decode_json(request.body, dict[str, Any]) if request.body.strip() else {}
        parameters = body.get("parameters", {})
        if set(body) - {"parameters"} or not isinstance(parameters, dict) or set(parameters) - {"unload_dependents"}:
            raise Invalid("loading takes no configuration and no files over this API")
        dependents = parameters.get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise Invalid("unload_dependents is not true or false", param="unload_dependents")
        await self._pipeline.change_model(call, request.params["model"], action, unload_dependents=dependents)

    def _require_admin(self, call: Call) -> None:
        if call.principal is None or "models:admin" not in call.principal.scopes:
            raise NotFound("no such route")

    # --- one model

    def _model(self, request: Request, call: Call) -> tuple[str, str]:
        model, version = request.params["model"], request.params.get("version", "")
        self._pipeline.identify(call, model)
        if version and not (version.isascii() and version.isdigit()):
            raise NotFound("no such version")
        return model, version

    async def model_metadata(self, request: Request, call: Call) -> Response:
        """Name, versions, platform, inputs and outputs (-1: variable)."""
        model, version = self._model(request, call)
        pool = self._pipeline.pool
        pool.signature(model, version)
        reply = await pool.ask("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), model, version)
        return _json(to_json(reply))

    async def model_ready(self, request: Request, call: Call) -> Response:
        """200, or 503 as long as it is not."""
        model, version = self._model(request, call)
        self._pipeline.pool.signature(model, version)
        return Response(200, b"", media_type=None)

    async def model_config(self, request: Request, call: Call) -> Response:
        """Triton's configuration of the model, as it runs."""
        model, version = self._model(request, call)
        pool = self._pipeline.pool
        pool.signature(model, version)
        reply = await pool.ask("ModelConfig", pb.ModelConfigRequest(name=model, version=version), model, version)
        return _json(to_json(reply.config))

    async def statistics(self, request: Request, call: Call) -> Response:
        """Triton's statistics: one model's, or those of all models that the key may use."""
        pool = self._pipeline.pool
        if "model" in request.params:
            model, version = self._model(request, call)
            pool.signature(model, version)
            reply = await pool.ask(
                "ModelStatistics", pb.ModelStatisticsRequest(name=model, version=version), model, version
            )
            return _json(to_json(reply))
        reply = await pool.ask("ModelStatistics", pb.ModelStatisticsRequest())
        principal = call.principal
        visible = [
            to_json(entry) for entry in reply.model_stats if principal is not None and principal.may_use(entry.name)
        ]
        return _json({"model_stats": visible})

    # --- inference

    async def infer(self, request: Request, call: Call) -> Response:
        """JSON and binary tensors in and out, in any mix."""
        model, version = self._model(request, call)
        signature = self._pipeline.pool.signature(model, version)
        if signature.decoupled:
            raise NotImplementedHere("this model answers with a stream; use generate_stream or gRPC")
        body, length = request.body, request.headers.get("inference-header-content-length")
        decoded = await self._pipeline.prepared(
            call,
            lambda: decode_infer(model, version, body, length, signature),
            long=length != "0" and len(body) > LONG_BODY,
        )
        if decoded.timeout_us:
            self._pipeline.set_timeout(call, decoded.timeout_us / 1e6)
        result = await self._pipeline.infer(call, decoded.request)
        body, header_length = encode_infer(
            result,
            decoded.request,
            decoded.encoding,
            partial(self._labels.of, model, signature),
            batched=signature.max_batch_size > 0,
        )
        headers = {}
        if header_length is not None:
            headers["Inference-Header-Content-Length"] = str(header_length)
        body = await _compressed(body, request.headers.get("accept-encoding", ""), headers)
        return Response(200, body, headers, "application/json" if header_length is None else BINARY)

    async def generate(self, request: Request, call: Call) -> Response:
        """Triton's generate extension: one JSON member per input, one per output."""
        inference = await self._generate_request(request, call)
        if self._pipeline.pool.signature(inference.model, inference.version).decoupled:
            results = [result async for result in self._pipeline.stream(call, inference)]
            if len(results) != 1:
                raise NotImplementedHere("this model answers with a stream; use generate_stream")
            return _json(_generated(results[0]))
        return _json(_generated(await self._pipeline.infer(call, inference)))

    async def generate_stream(self, request: Request, call: Call) -> Response:
        """The same as server-sent events; an error after the first event is an event too."""
        inference = await self._generate_request(request, call)
        if self._pipeline.pool.signature(inference.model, inference.version).decoupled:
            results = self._pipeline.stream(call, inference)
        else:
            results = _once(await self._pipeline.infer(call, inference))
        return Response(200, _events(results), media_type="text/event-stream")

    async def _generate_request(self, request: Request, call: Call) -> InferenceRequest:
        model, version = self._model(request, call)
        signature = self._pipeline.pool.signature(model, version)
        asked, timeout_us = await self._pipeline.prepared(
            call,
            lambda: decode_generate(model, version, request.body, signature),
            long=len(request.body) > LONG_BODY,
        )
        if timeout_us:
            self._pipeline.set_timeout(call, timeout_us / 1e6)
        return asked


def _typed(handler: Handler) -> Handler:
    """``handler``, for requests whose Content-Type is one that its body can have."""

    async def checked(request: Request, call: Call) -> Response:
        if request.content_type not in _CONTENT_TYPES and not (request.content_type or "").endswith("+json"):
            raise UnsupportedMediaType("the Content-Type must be application/json or application/octet-stream")
        return await handler(request, call)

    return checked


def _json(value: Any) -> Response:
    return Response(200, msgspec.json.encode(value))


async def _compressed(body: bytes, accepted: str, headers: dict[str, str]) -> bytes:
    """``body``, compressed if the client asks for one encoding and nothing else, as tritonclient does."""
    compress = _COMPRESSIONS.get(accepted.strip().lower())
    if compress is None:
        return body
    headers["Content-Encoding"] = accepted.strip().lower()
    return compress(body, 1) if len(body) < _IN_THREAD_BYTES else await asyncio.to_thread(compress, body, 1)


_COMPRESSIONS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
_IN_THREAD_BYTES = 64 * 1024
"""Answers from here on are compressed in a thread (about 2 ms)."""


def decode_generate(model: str, version: str, raw: bytes, signature: Signature) -> tuple[InferenceRequest, int | None]:
    """The request that the body ``raw`` of Triton's generate extension is, and its timeout in µs.

    Raises ``Malformed`` and ``Invalid``.
    """
    body = decode_json(raw, dict[str, Any])
    options = body.pop("parameters", {})
    identity = body.pop("id", "")
    if not isinstance(options, dict) or not isinstance(identity, str):
        raise Invalid("id must be a string and parameters an object")
    twice = body.keys() & options.keys()
    if twice:
        raise Invalid(f"{min(twice)!r} stands in the body and in parameters", param=min(twice))
    members = body | options
    others = {name: members.pop(name) for name in [*members] if name not in signature.inputs}
    for name, value in others.items():
        if isinstance(value, list | dict):
            raise Invalid(f"the model has no input {name!r}", param=name)
    parameters, priority, timeout_us = clean_parameters(others)
    tensors = tuple(_plain_tensor(signature, signature.inputs[name], value) for name, value in members.items())
    request = InferenceRequest(model, tensors, version, id=identity, parameters=parameters, priority=priority)
    return request, timeout_us


def _plain_tensor(signature: Signature, spec: TensorSignature, value: Any) -> Tensor:
    values = value if isinstance(value, list) else [value]
    if values and isinstance(values[0], list):
        raise Invalid(f"{spec.name!r} takes one value or a flat list", param=spec.name)
    shape = (1, len(values)) if signature.max_batch_size > 0 else (len(values),)
    count = signature.expect(spec.name, spec.datatype, shape)
    return Tensor(spec.name, spec.datatype, shape, raw_data(values, spec.datatype, spec.name, count))  # type: ignore[arg-type]


def _generated(result: InferenceResult) -> dict[str, Any]:
    members: dict[str, Any] = {"model_name": result.model, "model_version": result.version}
    if result.id:
        members["id"] = result.id
    for tensor in result.outputs:
        flat = to_numpy(tensor).reshape(-1).tolist()
        if tensor.datatype == "BYTES":
            flat = [element.decode("utf-8", errors="replace") for element in flat]
        members[tensor.name] = flat[0] if len(flat) == 1 else flat
    return members


async def _once(result: InferenceResult) -> AsyncIterator[InferenceResult]:
    yield result


async def _events(results: AsyncIterator[InferenceResult]) -> AsyncIterator[bytes]:
    begun = False
    try:
        async for result in results:
            begun = True
            yield b"data: " + msgspec.json.encode(_generated(result)) + b"\n\n"
    except GatewayError as error:
        if not begun:
            raise
        yield b"data: " + msgspec.json.encode({"error": error.message}) + b"\n\n"
        raise  # recorded as failed, and the connection is cut: never a whole answer
