"""Inference over Triton's HTTP endpoint: one lean client, since this is done for every request.

HTTP/1.1 with keep-alive, one request at a time on a connection, tensors in the binary extension of the
Open Inference Protocol. Parsing is httptools'; what is here is the framing of this one call.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, cast

import grpc
import httptools
import msgspec

from gateway.errors import BadUpstream, DeadlineExceeded
from gateway.timeouts import timeout
from gateway.triton.failures import NotExecuted, translate_text
from gateway.types import Datatype, InferenceRequest, InferenceResult, ParameterValue, Tensor

MAX_BODY_BYTES = 32 * 2**20
"""What is larger goes over gRPC: Triton refuses HTTP bodies over 64 MiB unless told otherwise."""
_KEPT_CONNECTIONS = 64
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._~-]+")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""Triton's mapping of its codes to HTTP, read backwards (server, http_server.cc)."""


class _OutputParameters(msgspec.Struct):
    binary_data_size: int


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _OutputParameters


class _Answer(msgspec.Struct):
    model_name: str
    model_version: str
    outputs: list[_Output] = []
    id: str = ""
    parameters: dict[str, ParameterValue] = {}


class _Failure(msgspec.Struct):
    error: str = ""


_encoder = msgspec.json.Encoder()
_answers = msgspec.json.Decoder(_Answer)
_failures = msgspec.json.Decoder(_Failure)


class _Connection(asyncio.Protocol):
    """One connection and the exchange on it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.status = 0
        self.json_length: int | None = None
        self.keep = False
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, head: bytes, tensors: Iterable[bytes | bytearray | memoryview]) -> asyncio.Future[bytes]:
        """Send a request; the future is the body of its answer, or raises :class:`ConnectionError`."""
        self._done = asyncio.get_running_loop().create_future()
        self._parts, self.json_length, self.status = [], None, 0
        if self.transport is None:
            raise ConnectionResetError
        self.transport.writelines([head, *tensors])
        return self._done

    def abort(self) -> None:
        """Drop the connection, which cancels what Triton is doing for it."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():  # nobody asked: the next one must not get it for an answer
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self.json_length = int(value)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.keep = self._parser.should_keep_alive()
        done, parts = self._done, self._parts
        if done is None or done.done():  # a second answer right behind the first
            self.abort()
        else:
            done.set_result(parts[0] if len(parts) == 1 else b"".join(parts))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._done is not None and not self._done.done():
            self._done.set_exception(error if isinstance(error, ConnectionError) else ConnectionResetError())


class HttpInference:
    """Inference on the Triton at ``host:port``. Each call has a connection for itself; idle ones are kept."""

    def __init__(self, host: str, port: int, connect_timeout_s: float) -> None:
        self._host, self._port = host, port
        self._found: str | None = None
        """The address that the host's name had when it was last connected to: a name server may be away."""
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[_Connection] = []
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def can_carry(self, request: InferenceRequest) -> bool:
        """Whether HTTP has a form for ``request``: a plain model name, whole parameters, not too large, and not one
        that waits in Triton, whose HTTP server takes no notice of a caller that has gone.
        """
        if request.queues or not _PLAIN_NAME.fullmatch(request.model):
            return False
        if request.parameters and any(isinstance(value, float) for value in request.parameters.values()):
            return False
        return sum(len(tensor.data) for tensor in request.inputs) <= MAX_BODY_BYTES

    async def infer(
        self, request: InferenceRequest, timeout_s: float | None, metadata: Iterable[tuple[str, str]] = ()
    ) -> InferenceResult:
        """Run one inference. Cancelling the task drops the connection; Triton 2.51 ends what it was given all the same.

        Raises :class:`NotExecuted`, or another :class:`~gateway.errors.GatewayError`.
        """
        head = self._head(request, timeout_s, metadata)
        connection = await self._connection()
        timer: asyncio.TimerHandle | None = None
        try:
            answer = connection.ask(head, [tensor.data for tensor in request.inputs])
            if timeout_s is not None:
                timer = asyncio.get_running_loop().call_later(timeout_s, _expire, answer)
            body = await answer
        except ConnectionError as error:
            raise BadUpstream(
                "the connection to the inference server broke; the request may have been executed"
            ) from error
        except BaseException:  # expired or cancelled: an answer may still come on it
            connection.abort()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        status, json_length = connection.status, connection.json_length
        if connection.keep and len(self._idle) < _KEPT_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.abort()
        try:
            if status != 200:
                raise translate_text(_failures.decode(body).error, _CODES.get(status, grpc.StatusCode.UNKNOWN))
            return _decode(body, len(body) if json_length is None else json_length)
        except (ValueError, msgspec.DecodeError) as error:
            raise BadUpstream("the inference server's answer could not be read") from error

    def forget(self) -> None:
        """Drop the connections that are idle: the server behind them is silent."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def close(self) -> None:
        """Close the connections that are idle; those in use end with their calls."""
        self.forget()
        await asyncio.sleep(0)  # the loop closes their sockets in its next turn

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        loop = asyncio.get_running_loop()
        try:
            async with timeout(self._connect_timeout_s):
                transport, connection = await loop.create_connection(_Connection, self._found or self._host, self._port)
        except (OSError, asyncio.TimeoutError) as error:
            self._found = None  # it may be somewhere else now
            raise NotExecuted("the inference server cannot be reached", retry_after_s=1.0) from error
        self._found = transport.get_extra_info("peername")[0]
        return connection

    def _head(self, request: InferenceRequest, timeout_s: float | None, metadata: Iterable[tuple[str, str]]) -> bytes:
        """Everything in front of the tensors: the HTTP header and the JSON header."""
        parameters: dict[str, Any] = {**request.parameters, "binary_data_output": True}
        if timeout_s is not None:  # obeyed by models whose queue policy allows it, and by nobody else
            parameters["timeout"] = int(timeout_s * 1e6)
        if request.priority:
            parameters["priority"] = request.priority
        message: dict[str, Any] = {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(tensor.data)},
                }
                for tensor in request.inputs
            ],
            "parameters": parameters,
        }
        if request.id:
            message["id"] = request.id
        if request.outputs:
            message["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
        header = _encoder.encode(message)
        length = len(header) + sum(len(tensor.data) for tensor in request.inputs)
        version = f"/versions/{request.version}" if request.version else ""
        more = "".join(f"{name}: {value}\r\n" for name, value in metadata)
        return (
            f"POST /v2/models/{request.model}{version}/infer HTTP/1.1\r\nHost: {self._authority}\r\n{more}"
            f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {length}\r\n\r\n"
        ).encode() + header


def _expire(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded("the deadline passed before the model answered"))


def _decode(body: bytes, json_length: int) -> InferenceResult:
    """Raises ``ValueError`` where lengths do not fit, ``msgspec.DecodeError`` for what is not the protocol."""
    view = memoryview(body)
    answer = _answers.decode(view[:json_length])
    outputs, offset = [], json_length
    for output in answer.outputs:
        end = offset + output.parameters.binary_data_size
        if end > len(body):
            raise ValueError(f"the answer ends before the output {output.name!r}")
        outputs.append(Tensor(output.name, cast("Datatype", output.datatype), output.shape, view[offset:end]))
        offset = end
    if offset != len(body):
        raise ValueError(f"{len(body) - offset} bytes follow the last output")
    return InferenceResult(answer.model_name, answer.model_version, tuple(outputs), answer.id, answer.parameters)
