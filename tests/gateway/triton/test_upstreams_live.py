"""Both ways to a real Triton, gRPC and HTTP: the same answers and the same errors."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper

from embedded.errors import WheelNotFoundError
from embedded.launcher import EmbeddedTriton, serving
from embedded.layout import find_wheel
from gateway.errors import BadUpstream, DeadlineExceeded, GatewayError, Invalid
from gateway.triton.client import TritonServer
from gateway.triton.failures import NotExecuted
from gateway.triton.tensors import decode_bytes, from_numpy, to_numpy
from gateway.types import InferenceRequest
from tests.embedded.repository import ALL_ONNX, Repository

pytestmark = pytest.mark.live

NUMBERS = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
SLOW = 48


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """A Triton with a model of all datatypes and one that computes for a while."""
    try:
        find_wheel()
    except WheelNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("models")
    repository = Repository(folder)
    repository.onnx(
        "types",
        [helper.make_node("Identity", [f"IN_{dtype}"], [f"OUT_{dtype}"]) for dtype in ALL_ONNX],
        [(f"IN_{dtype}", dtype, [3]) for dtype in ALL_ONNX],
        [(f"OUT_{dtype}", dtype, [3]) for dtype in ALL_ONNX],
    )
    size = 1024
    repository.onnx(
        "slow",
        [
            helper.make_node("Expand", ["X", "SHAPE"], ["M0"]),
            *(helper.make_node("MatMul", [f"M{n}", f"M{n}"], [f"M{n + 1}"]) for n in range(SLOW)),
            helper.make_node("ReduceMean", [f"M{SLOW}"], ["Y"], axes=[0, 1], keepdims=1),
        ],
        [("X", "FP32", [1, 1])],
        [("Y", "FP32", [1, 1])],
        max_batch_size=0,
        initializers=[helper.make_tensor("SHAPE", TensorProto.INT64, [2], [size, size])],
    )
    with serving(folder, tmp_path_factory.mktemp("triton"), ["types", "slow"]) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
async def server(request: pytest.FixtureRequest, triton: EmbeddedTriton) -> AsyncIterator[TritonServer]:
    over_http = request.param == "http"
    server = TritonServer(f"{triton.grpc_url}/{triton.http_port}" if over_http else triton.grpc_url)
    yield server
    await server.close()


def everything(rows: int) -> dict[str, np.ndarray]:
    arrays = {}
    for dtype in ALL_ONNX:
        if dtype == "STRING":
            arrays[dtype] = np.array([[b"", "grüße".encode(), b"three"]] * rows, dtype=object)
        else:
            kind = NUMBERS.get(dtype) or f"<{'u' if dtype.startswith('U') else 'i'}{int(dtype.lstrip('UINT')) // 8}"
            arrays[dtype] = np.arange(rows * 3).reshape(rows, 3).astype(kind)
    return arrays


async def test_every_datatype_comes_back_as_it_went(server: TritonServer) -> None:
    arrays = everything(2)
    request = InferenceRequest(
        "types", tuple(from_numpy(f"IN_{name}", array) for name, array in arrays.items()), version="1", id="seven"
    )
    result = await server.infer(request, 10.0)
    assert (result.model, result.version, result.id) == ("types", "1", "seven")
    assert len(result.outputs) == len(arrays)
    for name, array in arrays.items():
        output = result.output(f"OUT_{name}")
        assert output.shape == (2, 3)
        if name == "STRING":
            assert decode_bytes(output.data) == array.reshape(-1).tolist()
        else:
            np.testing.assert_array_equal(to_numpy(output), array)


async def test_only_the_outputs_that_were_asked_for(server: TritonServer) -> None:
    inputs = tuple(from_numpy(f"IN_{name}", array) for name, array in everything(1).items())
    result = await server.infer(
        InferenceRequest("types", inputs, outputs=("OUT_BOOL", "OUT_FP32"), parameters={"note": "x", "n": 3}), 10.0
    )
    assert [output.name for output in result.outputs] == ["OUT_BOOL", "OUT_FP32"]


@pytest.mark.parametrize("change", ["model", "version", "input", "shape"])
async def test_refusals_are_the_same(server: TritonServer, change: str) -> None:
    inputs = tuple(from_numpy(f"IN_{name}", array) for name, array in everything(1).items())
    if change == "input":
        inputs = inputs[1:]
    if change == "shape":
        inputs = (from_numpy(inputs[0].name, np.zeros((1, 7), dtype=bool)), *inputs[1:])
    request = InferenceRequest(
        "nothing" if change == "model" else "types", inputs, version="9" if change == "version" else ""
    )
    with pytest.raises(GatewayError) as raised:
        await server.infer(request, 10.0)
    assert raised.value.status == {"model": 503, "version": 503, "input": 422, "shape": 422}[change]
    assert isinstance(raised.value, Invalid) or raised.value.retry_after_s


async def test_connections_are_kept_and_calls_do_not_mix(server: TritonServer) -> None:
    arrays = everything(1)

    async def ask(number: int) -> None:
        mine = {**arrays, "INT64": np.full((1, 3), number)}
        inputs = tuple(from_numpy(f"IN_{name}", array) for name, array in mine.items())
        result = await server.infer(InferenceRequest("types", inputs, outputs=("OUT_INT64",)), 10.0)
        assert to_numpy(result.outputs[0]).tolist() == [[number] * 3]

    for _ in range(3):
        await asyncio.gather(*(ask(number) for number in range(40)))


def slow() -> InferenceRequest:
    return InferenceRequest("slow", (from_numpy("X", np.full((1, 1), 1e-3, dtype=np.float32)),))


async def test_a_deadline_ends_the_call(server: TritonServer) -> None:
    begin = time.monotonic()
    await server.infer(slow(), 60.0)
    takes = time.monotonic() - begin
    with pytest.raises(DeadlineExceeded):
        await server.infer(slow(), takes / 20)
    await server.infer(slow(), 60.0)


async def test_a_cancelled_call_leaves_the_client_usable(server: TritonServer) -> None:
    task = asyncio.ensure_future(server.infer(slow(), 60.0))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.infer(slow(), 60.0)


@pytest.mark.parametrize("port", ["", "/{port}"])
async def test_nobody_there_means_not_executed(port: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
        server = TritonServer(f"127.0.0.1:{free}{port.format(port=free)}", connect_timeout_s=1.0)
        with pytest.raises(NotExecuted):
            await server.infer(slow(), 5.0)
        await server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 43\r\nInference-Header-Content-Length: 41\r\n\r\n%s"
        % b'{"model_name":"slow","model_version":"1"}xx',
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        b"garbage\r\n\r\n",
    ],
)
async def test_a_broken_answer_may_have_been_executed(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server = TritonServer(f"127.0.0.1:1/{port}")
    try:
        with pytest.raises(BadUpstream) as raised:
            (await server.infer(slow(), 5.0)).output("Y")
        assert not isinstance(raised.value, NotExecuted)
    finally:
        await server.close()
        listener.close()
