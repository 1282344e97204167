"""Triton goes in the middle of a stream: its client is never told that what it has is all (HOSTILE.md, row 3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.live.faults.conftest import Fleet

pytestmark = pytest.mark.live

Poll = Callable[..., None]
NUMBER, PARTS = 5000.0, 400
"""The first part's number, and how many parts `drip.py` sends."""


@pytest.fixture
def dripping(fleet: Fleet, poll: Poll) -> Iterator[Fleet]:
    """The fleet, whose first Triton has a model that answers in parts."""
    triton = fleet.tritons[0]
    triton.load("drip")
    url = f"{fleet.gateway.url}/v2/models/drip/ready"
    poll(lambda: httpx.get(url, headers=fleet.gateway.headers, timeout=10).status_code == 200, 30, "the model")
    yield fleet
    if triton.poll() is None:
        triton.thaw()
    if triton.poll() is None and "drip" in triton.ready_models():
        triton.unload("drip")


def broken(fleet: Fleet, fault: str, poll: Poll) -> None:
    """Triton dies, or what leads to it does."""
    if fault == "killed":
        fleet.tritons[0].kill()
        fleet.tritons[0].revive(poll)
    else:
        fleet.roads[0].reset()


def events_until_cut(answer: httpx.Response, after_the_first: Callable[[], None]) -> list[dict[str, Any]]:
    """The events that came before the connection was cut, which it must be: chunks without a last one."""
    received = b""
    try:
        for part in answer.iter_bytes():
            if not received:
                after_the_first()
            received += part
    except httpx.RemoteProtocolError:
        return [json.loads(line[6:]) for line in received.splitlines() if line.startswith(b"data: ")]
    return pytest.fail(f"the stream was ended as if it were whole: {received[-200:]!r}")


def record(fleet: Fleet, usage_id: str, poll: Poll) -> tuple[str, int, int]:
    poll(lambda: usage_id in fleet.gateway.ended(), 30, "the usage record")
    return fleet.gateway.ended()[usage_id]


@pytest.mark.parametrize("fault", ["killed", "cut off"])
def test_3_over_http_the_stream_ends_with_an_error_and_without_its_end(dripping: Fleet, poll: Poll, fault: str) -> None:
    body, gateway = {"INPUT": [NUMBER, 50.0]}, dripping.gateway
    with httpx.stream(
        "POST", f"{gateway.url}/v2/models/drip/generate_stream", json=body, headers=gateway.headers, timeout=30
    ) as answer:
        assert answer.status_code == 200
        usage_id = answer.headers["x-request-id"]
        events = events_until_cut(answer, lambda: broken(dripping, fault, poll))
    assert 1 < len(events) < PARTS
    assert [event["OUTPUT"] for event in events[:-1]] == [NUMBER + place for place in range(len(events) - 1)]
    assert set(events[-1]) == {"error"}
    assert "127.0.0.1" not in events[-1]["error"]
    assert record(dripping, usage_id, poll) == ("failed", 502, 0)


@pytest.mark.parametrize("by_status", [False, True], ids=["as a reply", "as a status"])
@pytest.mark.parametrize("fault", ["killed", "cut off"])
def test_3_over_grpc_the_last_reply_is_an_error(dripping: Fleet, poll: Poll, fault: str, by_status: bool) -> None:
    message = pb.ModelInferRequest(model_name="drip", id="d1")
    message.inputs.add(name="INPUT", datatype="FP64", shape=[2]).contents.fp64_contents.extend([NUMBER, 50.0])
    metadata = [*dripping.gateway.headers.items()]
    if by_status:
        metadata.append(("triton_grpc_error", "true"))
    replies: list[Any] = []
    with grpc.insecure_channel(dripping.gateway.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([message]), metadata=metadata, timeout=30)
        code = None
        try:
            for reply in call:
                replies.append(reply)
                if len(replies) == 1:
                    broken(dripping, fault, poll)
        except grpc.RpcError as error:
            code = error.code()
    if by_status:
        assert code == grpc.StatusCode.UNAVAILABLE
    else:
        assert code is None
        last = replies.pop()
        assert last.error_message
        assert "127.0.0.1" not in last.error_message
        assert last.infer_response.id == "d1"
    assert 1 <= len(replies) < PARTS
    assert not any(reply.error_message for reply in replies)


def test_3_a_silent_triton_ends_the_stream_at_its_deadline(dripping: Fleet, poll: Poll) -> None:
    gateway = dripping.gateway
    body = {"INPUT": [NUMBER, 20.0], "timeout": 1_500_000}
    with httpx.stream(
        "POST", f"{gateway.url}/v2/models/drip/generate_stream", json=body, headers=gateway.headers, timeout=30
    ) as answer:
        usage_id = answer.headers["x-request-id"]
        events = events_until_cut(answer, dripping.tritons[0].freeze)
    dripping.tritons[0].thaw()
    assert set(events[-1]) == {"error"}
    assert record(dripping, usage_id, poll) == ("failed", 504, 0)
