"""``tritonclient``'s four clients behind one face, so that one test says what all of them must see."""

from __future__ import annotations

import asyncio
import inspect
import queue
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

MODULES: Mapping[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
KINDS = tuple(MODULES)
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Target:
    """A server: the gateway, or Triton itself."""

    name: str
    http: str
    grpc: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Client:
    """One kind of client at one target. Calls of the asyncio kinds are run to their end on ``loop``."""

    def __init__(self, kind: str, target: Target, loop: asyncio.AbstractEventLoop) -> None:
        self.kind = kind
        self.target = target
        self.is_http = kind.startswith("http")
        self._loop = loop
        self._module = MODULES[kind]
        self._inner = self._wait(self._create(target.http if self.is_http else target.grpc))

    async def _create(self, address: str) -> Any:
        return self._module.InferenceServerClient(address)

    def close(self) -> None:
        """Close its connections."""
        self._wait(self._inner.close())

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Any method of the client, with the target's headers."""
        return self._wait(getattr(self._inner, name)(*arguments, headers=dict(self.target.headers), **options))

    def plain(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The same, its answer as plain values for gRPC too."""
        return self.call(name, *arguments, **options, **({} if self.is_http else {"as_json": True}))

    def _wait(self, result: Any) -> Any:
        if inspect.isawaitable(result):
            return self._loop.run_until_complete(asyncio.wait_for(_awaited(result), TIMEOUT_S))
        return result

    # --- tensors

    def input(self, name: str, array: NDArray[Any], *, binary: bool = True, datatype: str = "") -> Any:
        """An input; ``binary`` matters over HTTP only."""
        shared = tritonclient.http if self.is_http else tritonclient.grpc
        tensor = shared.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, **({"binary_data": binary} if self.is_http else {}))
        return tensor

    def output(self, name: str, *, binary: bool = True, classes: int = 0) -> Any:
        """A requested output; ``binary`` matters over HTTP only."""
        shared = tritonclient.http if self.is_http else tritonclient.grpc
        return shared.InferRequestedOutput(
            name, class_count=classes, **({"binary_data": binary} if self.is_http else {})
        )

    # --- inference

    def infer(self, model: str, inputs: Sequence[Any], **options: Any) -> Any:
        """One inference: the client's own result."""
        return self.call("infer", model, list(inputs), **options)

    def many(self, model: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> list[Any]:
        """``async_infer`` of inputs A and B, all sent before the first answer is waited for."""
        requests = [[self.input("A", left), self.input("B", right)] for left, right in pairs]
        if self.is_http:
            sent = [self.call("async_infer", model, inputs) for inputs in requests]
            return [request.get_result() for request in sent]
        answers: queue.Queue[tuple[int, Any]] = queue.Queue()
        for number, inputs in enumerate(requests):
            callback = partial(lambda place, result, error: answers.put((place, error or result)), number)
            self.call("async_infer", model, inputs, callback)
        return [answer for _, answer in sorted((answers.get(timeout=TIMEOUT_S) for _ in requests), key=itemgetter(0))]

    def answer(self, result: Any) -> dict[str, Any]:
        """What a result says beside its data: model, version, id, and name, type and shape of each output."""
        message = result.get_response()
        if self.is_http:
            outputs = [(out["name"], out["datatype"], tuple(out["shape"])) for out in message["outputs"]]
            return {
                "model": message["model_name"], "version": message["model_version"], "id": message.get("id", ""),
                "outputs": outputs,
            }  # fmt: skip
        outputs = [(out.name, out.datatype, tuple(out.shape)) for out in message.outputs]
        return {"model": message.model_name, "version": message.model_version, "id": message.id, "outputs": outputs}

    def stream(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Everything that comes back on one gRPC stream for ``requests``: results and errors in their order."""
        if self.kind == "grpc.aio":
            return list(self._wait(self._stream_aio(requests)))
        received: queue.Queue[Any] = queue.Queue()
        self._inner.start_stream(lambda result, error: received.put(error or result), headers=dict(self.target.headers))
        for request in requests:
            self._inner.async_stream_infer(**request)
        self._inner.stop_stream()  # waits for the answers
        return list(received.queue)

    async def _stream_aio(self, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
        async def send() -> AsyncIterator[dict[str, Any]]:
            for request in requests:
                yield dict(request)

        received = []
        async for result, error in self._inner.stream_infer(send(), headers=dict(self.target.headers)):
            received.append(error or result)
        return received


async def _awaited(result: Any) -> Any:
    return await result


def texts(received: Sequence[Any], output: str) -> list[str]:
    """``output`` of each result as text; ``error`` where an error came."""
    return [
        "error" if isinstance(item, InferenceServerException) else item.as_numpy(output).reshape(-1)[0].decode()
        for item in received
    ]
