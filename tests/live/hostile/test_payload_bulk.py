"""JSON that is right and far too much of it: what it takes to read it is bounded, in memory and in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway.dialects.json import MAX_VALUES
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.memory import peak
from tests.live.hostile.payload import INFER, Sender, sender
from tests.live.hostile.second import Second

pytestmark = pytest.mark.live

SIZE = 60 * 2**20
LIMIT_MIB = 64
PATIENCE_S = 8.0
"""For a machine that is busy with other things; what is refused here once held the gateway up for 10 to 30 s."""
PATHS = (INFER, "/v2/models/identity/generate")


@pytest.fixture
def send(second: Second) -> Iterator[Sender]:
    with sender(second.gateway) as opened:
        yield opened


def filled(item: bytes) -> bytes:
    """A body of ``SIZE`` whose only member is a list of ``item``."""
    return b'{"inputs":[' + (item * (SIZE // len(item)))[:-1] + b"]}"


TOO_MANY = {
    "lists": lambda: filled(b"[],"),
    "objects": lambda: filled(b"{},"),
    "nested lists": lambda: filled(b"[[[[[[]]]]]],"),
    "objects with a member": lambda: filled(b'{"a":1},'),
    "members": lambda: b"{" + b",".join(b'"%07d":1' % number for number in range(SIZE // 12)) + b"}",
    "texts that look like members": lambda: filled(b'"\\":",'),
}


@pytest.mark.parametrize("make", TOO_MANY.values(), ids=TOO_MANY.keys())
def test_containers_without_end_are_413(
    fake: FakeTriton, second: Second, send: Sender, make: Callable[[], bytes]
) -> None:
    """Three bytes each, 64 in memory: as much as the body itself is kept, not thirty times that."""
    body = make()
    with second.invariants.case(growth_mib=160) as case, peak(second.process.pid) as seen:
        before = second.invariants.metrics()["process_cpu_seconds_total"]
        for path in PATHS:
            case.refused(send.post(path, body), 413, "oip")
        spent = second.invariants.metrics()["process_cpu_seconds_total"] - before
    assert seen.growth < 4 * LIMIT_MIB, f"{seen.growth:.0f} MiB"
    assert spent < 4.0


VALUES = {"ones": b"1,", "halves": b"0.5,", "texts": b'"ab",', "empty texts": b'"",'}
HEAD = b'{"inputs":[{"name":"INPUT","shape":[%d,64],"datatype":"FP32","data":['


@pytest.mark.parametrize("item", VALUES.values(), ids=VALUES.keys())
def test_values_without_end_are_413(fake: FakeTriton, second: Second, send: Sender, item: bytes) -> None:
    """Two bytes each, 32 and more in memory; the interpreter does nothing else while it makes them."""
    body = HEAD % 1 + (item * ((SIZE - 100) // len(item)))[:-1] + b"]}]}"
    with second.invariants.case(growth_mib=160) as case, peak(second.process.pid) as seen, answering(second):
        for path in (INFER, "/v2/models/identity/generate", "/hf/models/identity", "/v1/embeddings"):
            answer = send.post(path, body)
            assert case.see(answer).status_code in ({404} if path.startswith("/hf") else {413}), answer.text
    assert seen.growth < 4 * LIMIT_MIB, f"{seen.growth:.0f} MiB"


@pytest.mark.parametrize(
    "item", [*VALUES.values(), b"123456789012345678901234567890,"], ids=[*VALUES.keys(), "great numbers"]
)
def test_as_many_values_as_are_taken_are_counted_before_they_are_converted(
    fake: FakeTriton, second: Second, send: Sender, item: bytes
) -> None:
    """Others are answered meanwhile."""
    count = min(MAX_VALUES - 10, (SIZE - 100) // len(item))
    data = (item * count)[:-1] + b"]}]}"
    with second.invariants.case(growth_mib=256) as case, peak(second.process.pid) as seen, answering(second):
        for rows in (1, 64, 65):
            case.refused(send.post(INFER, HEAD % rows + data), 422, "oip")
    assert seen.growth < 6 * LIMIT_MIB, f"{seen.growth:.0f} MiB"


@contextmanager
def answering(second: Second) -> Iterator[None]:
    """The gateway goes on answering until the block ends, at no time after more than :data:`PATIENCE_S`."""
    done, waits = threading.Event(), []

    def ask() -> None:
        with httpx.Client(base_url=second.gateway.url, timeout=120.0) as client:
            while not done.is_set():
                begin = time.monotonic()
                assert client.get("/healthz/live").status_code == 200
                waits.append(time.monotonic() - begin)

    with ThreadPoolExecutor(1) as executor:
        asking = executor.submit(ask)
        try:
            yield
        finally:
            done.set()
            asking.result(120)
    assert max(waits) < PATIENCE_S, f"{max(waits):.1f} s of {len(waits)} answers"


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, parts = len(data), []
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *parts, size]) + data


IDENTITY = field(1, b"identity")
HEADED = field(1, b"INPUT") + field(2, b"FP32") + field(3, b"\x01\x40")
MESSAGES = {
    "inputs": lambda: IDENTITY + field(5, b"") * (SIZE // 2),
    "raw contents": lambda: IDENTITY + field(7, b"") * (SIZE // 2),
    "parameters": lambda: IDENTITY + field(5, HEADED + field(4, b"") * (SIZE // 2)),
    "dimensions": lambda: IDENTITY + field(5, field(3, b"\x01" * SIZE)),
    "texts": lambda: IDENTITY + field(5, HEADED + field(5, field(8, b"") * (SIZE // 2))),
    "numbers": lambda: IDENTITY + field(5, HEADED + field(5, field(4, b"\x01" * SIZE))),
}


@pytest.mark.parametrize("make", MESSAGES.values(), ids=MESSAGES.keys())
def test_messages_of_many_small_things(fake: FakeTriton, second: Second, make: Callable[[], bytes]) -> None:
    """Over gRPC: parsed they would be ten to ninety times as large."""
    body, metadata = make(), tuple(second.gateway.headers.items())
    service = "/inference.GRPCInferenceService"
    with (
        grpc.insecure_channel(second.gateway.grpc_address) as channel,
        second.invariants.case(growth_mib=160) as case,
        peak(second.process.pid) as seen,
        answering(second),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"{service}/ModelInfer")(body, metadata=metadata, timeout=120)
        case.grpc_refused(refused.value, grpc.StatusCode.RESOURCE_EXHAUSTED)
        replies = channel.stream_stream(f"{service}/ModelStreamInfer")(iter([body]), metadata=metadata, timeout=120)
        assert pb.ModelStreamInferResponse.FromString(next(replies)).error_message
    assert seen.growth < 5 * LIMIT_MIB, f"{seen.growth:.0f} MiB"


def test_as_many_as_are_taken(fake: FakeTriton, second: Second, send: Sender) -> None:
    """Within the bound it is looked at, and refused for its form."""
    body = b'{"inputs":[' + b"[]," * 900_000 + b"[]]}"
    with second.invariants.case(growth_mib=160) as case:
        case.refused(send.post(INFER, body), 422, "oip")
