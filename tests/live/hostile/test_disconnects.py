"""Clients that go away (case 30): upstream cancelled, slot released, recorded as client_closed."""

from __future__ import annotations

import json
from collections.abc import Callable

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD, Invariants
from tests.live.hostile.second import Second
from tests.live.hostile.wire import Connection, request

pytestmark = pytest.mark.live

INFER = "/v2/models/identity/infer"
BODY = json.dumps(GOOD).encode()
CLOSED = 'tidegate_requests_total{code="499",dialect="kserve_http",model="%s"}'


def test_30_a_disconnect_while_uploading(invariants: Invariants, poll: Callable[..., None]) -> None:
    """On the running stack. Nothing was admitted yet, so there is no record: it is counted as 499."""
    headers = invariants.gateway.headers | {"connection": "", "content-length": "100000"}
    counter = CLOSED % ""
    before = invariants.metrics().get(counter, 0.0)
    with invariants.case():
        for sent in (b"", b" " * 10_000):
            with Connection(invariants.gateway.url) as connection:
                connection.send(request("POST", INFER, headers), sent)
        poll(lambda: invariants.metrics().get(counter, 0.0) == before + 2, 10, "two requests counted as 499")


def test_30_a_disconnect_while_triton_works(invariants: Invariants, poll: Callable[..., None]) -> None:
    """On the running stack: a call of many long texts is left in the middle."""
    body = json.dumps({"inputs": ["tide " * 300] * 128}).encode()
    outstanding = [name for name in invariants.metrics() if name.startswith("tidegate_upstream_outstanding")]
    headers = invariants.gateway.headers | {"connection": "", "x-request-id": "gone-1"}
    with invariants.case(usage={"client_closed": 1}, growth_mib=128):
        with Connection(invariants.gateway.url) as connection:
            connection.send(request("POST", "/hf/models/embeddings", headers, body))
            poll(lambda: invariants.metrics()["tidegate_ledger_inflight"] == 1, 20, "the call")
        poll(lambda: all(invariants.metrics()[name] == 0 for name in outstanding), 20, "the end of its requests")
    record = invariants.usage_record("gone-1")
    assert (record["state"], record["status"]) == ("client_closed", 499)


def test_30_a_disconnect_while_waiting_cancels_upstream(fake: FakeTriton, second: Second) -> None:
    fake.mode = "hang"
    headers = second.gateway.headers | {"connection": "", "x-request-id": "gone-2"}
    with second.invariants.case(usage={"client_closed": 1}):
        with Connection(second.gateway.url) as connection:
            connection.send(request("POST", INFER, headers, BODY))
            assert fake.begun.acquire(timeout=10)
        assert fake.cancelled.acquire(timeout=5)
        fake.mode = "echo"
    record = second.invariants.usage_record("gone-2")
    assert (record["state"], record["status"], record["billed_usd"]) == ("client_closed", 499, 0)


def test_30_a_disconnect_behind_a_pipelined_request_cancels_both(fake: FakeTriton, second: Second) -> None:
    fake.mode = "hang"
    one = request("POST", INFER, second.gateway.headers | {"connection": ""}, BODY)
    with second.invariants.case(usage={"client_closed": 1}):  # the other was never begun
        with Connection(second.gateway.url) as connection:
            connection.send(one + one)
            assert fake.begun.acquire(timeout=10)
        assert fake.cancelled.acquire(timeout=5)
        fake.mode = "echo"


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_30_a_disconnect_in_a_stream_cancels_upstream(fake: FakeTriton, second: Second, reset: bool) -> None:
    body = json.dumps({"INPUT": [0.5] * 64}).encode()
    headers = second.gateway.headers | {"connection": "", "x-request-id": f"gone-stream-{reset}"}
    with second.invariants.case(usage={"client_closed": 1}):
        with Connection(second.gateway.url) as connection:
            connection.send(request("POST", "/v2/models/stream/generate_stream", headers, body))
            head = connection.socket.recv(65536)
            assert head.startswith(b"HTTP/1.1 200 ")
            if reset:
                connection.reset_on_close()
        assert fake.cancelled.acquire(timeout=5)
        sent = fake.parts
    record = second.invariants.usage_record(f"gone-stream-{reset}")
    assert (record["state"], record["status"]) == ("client_closed", 499)
    assert fake.parts == sent  # and it has stopped


def test_30_a_cancelled_grpc_call_cancels_upstream(fake: FakeTriton, second: Second) -> None:
    fake.mode = "hang"
    message = pb.ModelInferRequest(model_name="identity")
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 64])
    message.raw_input_contents.append(np.zeros((1, 64), np.float32).tobytes())
    metadata = tuple(second.gateway.headers.items())
    with (
        second.invariants.case(usage={"client_closed": 1}),
        grpc.insecure_channel(second.gateway.grpc_address) as channel,
    ):
        future = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(message, metadata=metadata)
        assert fake.begun.acquire(timeout=10)
        future.cancel()
        assert fake.cancelled.acquire(timeout=5)
        fake.mode = "echo"


def test_30_a_cancelled_grpc_stream_cancels_upstream(fake: FakeTriton, second: Second) -> None:
    message = pb.ModelInferRequest(model_name="stream")
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 64])
    message.raw_input_contents.append(np.zeros((1, 64), np.float32).tobytes())
    metadata = tuple(second.gateway.headers.items())
    with (
        second.invariants.case(usage={"client_closed": 1}),
        grpc.insecure_channel(second.gateway.grpc_address) as channel,
    ):
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([message]), metadata=metadata)
        assert next(call).infer_response.outputs
        call.cancel()
        assert fake.cancelled.acquire(timeout=5)


def test_30_many_disconnects_leave_no_slot_taken(fake: FakeTriton, second: Second, poll: Callable[..., None]) -> None:
    fake.mode = "hang"
    one = request("POST", INFER, second.gateway.headers | {"connection": ""}, BODY)
    with second.invariants.case(usage={"client_closed": 10}, growth_mib=16):
        connections = [Connection(second.gateway.url) for _ in range(10)]
        for connection in connections:
            connection.send(one)
        poll(lambda: second.invariants.metrics()["tidegate_ledger_inflight"] == 10, 10, "ten calls")
        for connection in connections:
            connection.close()
        for _ in range(sum(fake.begun.acquire(timeout=0.2) for _ in range(10))):
            assert fake.cancelled.acquire(timeout=5)
        fake.mode = "echo"
    assert second.invariants.metrics()['tidegate_inflight{model="identity"}'] == 0


# --- what comes from upstream never leaves as it came (case 60)

RAW = (
    "failed to open shared memory region 'triton_python_backend_shm_region_7' at /opt/tritonserver/backends/x.cc:42",
    'onnx runtime error 1: Traceback (most recent call last): File "/models/identity/1/model.py", line 3',
    "connection to 10.20.30.40:8001 (triton-0.triton.svc.cluster.local) lost",
    "\x1b[31mred\r\nSet-Cookie: a=b\u2028",
)
CODES = [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN]
LEAKS = ("shm", "/opt", "/models", "Traceback", "10.20.30.40", "svc.cluster", "Set-Cookie", "\x1b")


@pytest.mark.parametrize("raw", RAW, ids=["shm", "stack", "host", "control"])
def test_60_upstream_error_text_is_replaced(fake: FakeTriton, second: Second, raw: str) -> None:
    size = second.gateway.log_file.stat().st_size
    with (
        second.invariants.case(usage={"failed": len(CODES)}) as case,
        httpx.Client(base_url=second.gateway.url) as client,
    ):
        fake.mode = "fail"
        for code in CODES:
            fake.failure = (code, raw)
            answer = case.refused(
                client.post(INFER, json=GOOD, headers=second.gateway.headers), {404, 422, 502, 503}, "oip"
            )
            assert not [text for text in LEAKS if text in answer.text]
        fake.mode = "echo"
    assert not [text for text in LEAKS if text in "\n".join(second.invariants.log_since(size))]


def test_60_an_error_in_a_stream_ends_it_short(fake: FakeTriton, second: Second) -> None:
    """After parts have gone out with 200: an event says so, and the answer is never completed as if it were whole."""
    fake.failure = (grpc.StatusCode.INTERNAL, RAW[0])
    body = json.dumps({"INPUT": [0.5] * 64}).encode()
    with second.invariants.case(
        usage={"failed": 1}, log_allows=("ASGI callable returned without completing response.",)
    ):
        fake.mode = "fail"
        with Connection(second.gateway.url) as connection:
            connection.send(
                request("POST", "/v2/models/stream/generate_stream", second.gateway.headers | {"connection": ""}, body)
            )
            received = b""
            while block := connection.socket.recv(65536):
                received += block
        fake.mode = "echo"
    assert received.startswith(b"HTTP/1.1 200 ")
    events = [line for line in received.split(b"\r\n") if line.startswith(b"data: ")]
    assert json.loads(events[-1][6:])["error"] == "the model failed on this request"
    assert not received.endswith(b"0\r\n\r\n")
    assert b"shm" not in received
