"""Case 29 on the gRPC port, which does speak HTTP/2, and the routing cases of section 1.4 over gRPC."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.live.hostile import h2
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import Invariants
from tests.live.hostile.second import Second

pytestmark = pytest.mark.live

INFER = "/inference.GRPCInferenceService/ModelInfer"
MAX_STREAMS = 100


def good_request() -> Any:
    message = pb.ModelInferRequest(model_name="identity")
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 64])
    message.raw_input_contents.append(np.full((1, 64), 0.5, np.float32).tobytes())
    return message


@pytest.fixture
def channel(invariants: Invariants) -> Any:
    with grpc.insecure_channel(invariants.gateway.grpc_address) as opened:
        yield opened


def check_grpc(channel: Any, invariants: Invariants) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = tuple(invariants.gateway.headers.items())
    reply = stub.ModelInfer(good_request(), metadata=metadata, timeout=20)
    assert reply.raw_output_contents[0] == good_request().raw_input_contents[0]


def test_29_more_than_100_streams_at_once_wait_their_turn(invariants: Invariants, channel: Any) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = tuple(invariants.gateway.headers.items())
    with invariants.case(usage={"completed": 301}):
        futures = [stub.ModelInfer.future(good_request(), metadata=metadata, timeout=60) for _ in range(300)]
        for future in futures:
            assert future.result().raw_output_contents[0] == good_request().raw_input_contents[0]
        check_grpc(channel, invariants)


def test_29_streams_over_the_limit_are_refused(invariants: Invariants, channel: Any) -> None:
    """A client that does not keep to SETTINGS: its streams are refused, or it is told to go."""
    with invariants.case(usage={"completed": 1}):
        with h2.connect(invariants.gateway.grpc_address) as connection:
            settings = next(payload for kind, _, payload in h2.read_frames(connection, 0.5) if kind == h2.SETTINGS)
            limits = dict(struct.unpack(">HI", settings[at : at + 6]) for at in range(0, len(settings), 6))
            assert limits[3] == MAX_STREAMS  # SETTINGS_MAX_CONCURRENT_STREAMS
            block = h2.headers(INFER)
            opened = b"".join(
                h2.frame(h2.HEADERS, stream, block, h2.END_HEADERS) for stream in range(1, 2 * MAX_STREAMS * 3, 2)
            )
            connection.sendall(opened)  # and none is ever finished
            frames = h2.read_frames(connection, 1.0)
        refused = {stream for kind, stream, _ in frames if kind == h2.RST_STREAM}
        gone = any(kind == h2.GOAWAY for kind, _, _ in frames)
        assert gone or len(refused) >= 2 * MAX_STREAMS
        check_grpc(channel, invariants)


def test_29_rapid_reset_is_survived(invariants: Invariants, channel: Any) -> None:
    """CVE-2023-44487: streams that are opened and reset at once, 20 times as many as may be open."""
    block = h2.headers(INFER, *invariants.gateway.headers.items())
    message = good_request().SerializeToString()
    data = b"\0" + struct.pack(">I", len(message)) + message
    stream_count = 20 * MAX_STREAMS

    def storm() -> None:
        with h2.connect(invariants.gateway.grpc_address) as connection:
            try:
                for stream in range(1, 2 * stream_count, 2):
                    connection.sendall(
                        h2.frame(h2.HEADERS, stream, block, h2.END_HEADERS)
                        + h2.frame(h2.DATA, stream, data, h2.END_STREAM)
                        + h2.frame(h2.RST_STREAM, stream, struct.pack(">I", h2.CANCEL))
                    )
            except OSError:
                pass  # told to go
            h2.read_frames(connection, 0.5)

    storm()  # the allocator's high-water mark
    invariants.check_alive()
    before = invariants.metrics()
    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(storm) for _ in range(3)]:
            future.result()
    check_grpc(channel, invariants)
    _settle(invariants)
    after = invariants.metrics()
    assert after["process_start_time_seconds"] == before["process_start_time_seconds"]
    assert after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"] < 32 * 2**20
    invariants.check_alive()


def _settle(invariants: Invariants) -> None:
    """Each stream that got in was recorded as what became of it; none is left."""
    sample = invariants.metrics()
    ended = {state: count for state, count in invariants.ledger().items() if state in {"failed", "unknown", "dropped"}}
    with invariants.case(usage={}):
        pass
    assert sample["tidegate_ledger_consistent"] == 1
    assert {state: invariants.ledger()[state] for state in ended} == ended


BROKEN = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a frame of 16 MB": h2.PREFACE + h2.frame(h2.SETTINGS, 0) + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "headers on stream 0": h2.PREFACE + h2.frame(h2.SETTINGS, 0) + h2.frame(h2.HEADERS, 0, h2.headers(INFER), 4),
    "an even stream": h2.PREFACE + h2.frame(h2.SETTINGS, 0) + h2.frame(h2.HEADERS, 2, h2.headers(INFER), 4),
    "broken header compression": h2.PREFACE + h2.frame(h2.SETTINGS, 0) + h2.frame(h2.HEADERS, 1, b"\xff" * 50, 4),
    "an endless header block": h2.PREFACE + h2.frame(h2.SETTINGS, 0) + h2.frame(h2.HEADERS, 1, h2.headers(INFER))
    + h2.frame(h2.CONTINUATION, 1, h2.headers("/a", ("x", "y" * 5000)) * 3) * 100,
    "a flood of settings": h2.PREFACE + h2.frame(h2.SETTINGS, 0) * 20_000,
    "a flood of pings": h2.PREFACE + h2.frame(h2.SETTINGS, 0) + h2.frame(h2.PING, 0, b"12345678") * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN.keys())
def test_29_broken_http_2_costs_its_own_connection_only(invariants: Invariants, channel: Any, sent: bytes) -> None:
    check_grpc(channel, invariants)
    with invariants.case(usage={"completed": 1}, growth_mib=16):
        host, port = invariants.gateway.grpc_address.rsplit(":", 1)
        with h2.socket.create_connection((host, int(port)), timeout=10) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(sent)
            h2.read_frames(connection, 0.5)
        check_grpc(channel, invariants)


def test_oversized_metadata_and_messages_are_refused(invariants: Invariants, channel: Any) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = tuple(invariants.gateway.headers.items())
    huge = good_request()
    huge.raw_input_contents[0] = b"\0" * (64 * 2**20 + 1)
    with invariants.case(usage={"completed": 1}, growth_mib=160):
        for message, extra in ((good_request(), (("x-big", "a" * 50_000),)), (huge, ())):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(message, metadata=(*metadata, *extra), timeout=20)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        check_grpc(channel, invariants)


NAMES = (
    "../etc", "a/../b", "../../etc/passwd", "model/..", "..", "/etc/passwd", "model/subdir", "model/", " ..", ".. ", "",
    " ", "   ", "\t\n", "A" * 256, "identity\0", "IDENTITY", "%2e%2e",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_53_names_that_are_none_are_not_found_and_never_forwarded(fake: FakeTriton, second: Second, name: str) -> None:
    metadata = tuple(second.gateway.headers.items())
    message = good_request()
    message.model_name = name
    before = fake.beyond_probes()
    with grpc.insecure_channel(second.gateway.grpc_address) as channel, second.invariants.case() as case:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls: list[Callable[[], Any]] = [
            lambda: stub.ModelInfer(message, metadata=metadata, timeout=20),
            lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name=name), metadata=metadata, timeout=20),
            lambda: stub.ModelConfig(pb.ModelConfigRequest(name=name), metadata=metadata, timeout=20),
            lambda: stub.ModelInfer(_versioned("../1"), metadata=metadata, timeout=20),
            lambda: stub.ModelInfer(_versioned("9" * 5_000), metadata=metadata, timeout=20),
        ]
        if name:  # without one, statistics are of all models
            calls.append(
                lambda: stub.ModelStatistics(pb.ModelStatisticsRequest(name=name), metadata=metadata, timeout=20)
            )
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            case.grpc_refused(caught.value, grpc.StatusCode.NOT_FOUND)
        assert not stub.ModelReady(pb.ModelReadyRequest(name=name), metadata=metadata, timeout=20).ready
        assert fake.beyond_probes() == before


def _versioned(version: str) -> Any:
    message = good_request()
    message.model_version = version
    return message


def test_55_tritons_control_is_not_there_over_grpc(invariants: Invariants, channel: Any) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = tuple(invariants.gateway.headers.items())
    absent = {
        "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusRequest(),
        "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=64),
        "SystemSharedMemoryUnregister": pb.SystemSharedMemoryUnregisterRequest(),
        "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusRequest(),
        "CudaSharedMemoryRegister": pb.CudaSharedMemoryRegisterRequest(name="x"),
        "CudaSharedMemoryUnregister": pb.CudaSharedMemoryUnregisterRequest(),
        "TraceSetting": pb.TraceSettingRequest(),
        "LogSettings": pb.LogSettingsRequest(),
    }
    with invariants.case():
        for method, message in absent.items():
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, method)(message, metadata=metadata, timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, method
    scoped = {
        "RepositoryIndex": pb.RepositoryIndexRequest(),
        "RepositoryModelLoad": pb.RepositoryModelLoadRequest(model_name="identity"),
        "RepositoryModelUnload": pb.RepositoryModelUnloadRequest(model_name="identity"),
    }
    with invariants.case() as case:
        for method, message in scoped.items():
            with pytest.raises(grpc.RpcError) as caught:
                getattr(stub, method)(message, metadata=metadata, timeout=20)
            case.grpc_refused(caught.value, grpc.StatusCode.NOT_FOUND)
