"""One trace from the client's span through the gateway's to Triton's own, by real exporters to a real receiver."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc

from tests.live.faults.collector import Collector, Span
from tests.live.faults.conftest import Fleet
from tests.live.faults.servers import GatewayProcess

pytestmark = pytest.mark.live

Poll = Callable[..., None]
BODY = {"inputs": [{"name": "INPUT", "shape": [1, 2], "datatype": "FP64", "data": [7.0, 0.0]}]}


def context() -> tuple[str, str, str]:
    """A new trace's header, trace id and span id, as a client sends them."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-01", trace_id, span_id


def tritons_span(collector: Collector, trace_ids: Sequence[str], poll: Poll) -> Span:
    """Triton's span of a whole request in one of these traces: its exporter does not promise all of them."""

    def found() -> list[Span]:
        return [span for trace_id in trace_ids for span in collector.of(trace_id) if span.name == "InferRequest"]

    poll(found, 30, "Triton's span")
    return found()[0]


def test_a_clients_trace_reaches_triton(fleet: Fleet, collector: Collector, poll: Poll) -> None:
    contexts = [context() for _ in range(3)]
    for header, _, _ in contexts:
        headers = fleet.gateway.headers | {"traceparent": header, "tracestate": "vendor=1"}
        answer = httpx.post(f"{fleet.gateway.url}/v2/models/recorder/infer", json=BODY, headers=headers, timeout=30)
        assert answer.status_code == 200
    found = tritons_span(collector, [trace_id for _, trace_id, _ in contexts], poll)
    assert (found.trace_id, found.parent_id) in {(trace_id, span_id) for _, trace_id, span_id in contexts}


@pytest.mark.parametrize(
    "header", ["", "00-zz-1-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x" * 4000, "00-\u00e9\u00e9", "a\tb"]
)
def test_a_trace_context_that_is_none_does_no_harm(fleet: Fleet, header: str) -> None:
    headers = {name.encode(): value.encode() for name, value in fleet.gateway.headers.items()}
    headers |= {b"traceparent": header.encode("latin-1"), b"tracestate": "\u00e9=\u00fc".encode("latin-1")}
    answer = httpx.post(f"{fleet.gateway.url}/v2/models/recorder/infer", json=BODY, headers=headers, timeout=30)
    assert answer.status_code == 200


@pytest.fixture
def traced(fleet: Fleet, collector: Collector, tmp_path: Path, poll: Poll) -> Iterator[Fleet]:
    """The fleet behind a gateway that exports its own spans too."""
    targets = ",".join(road.address for road in fleet.roads)
    gateway = GatewayProcess(tmp_path, fleet.repository, targets, poll, otlp_endpoint=collector.url, otlp_ratio="0")
    gateway.bootstrap().start()
    try:
        yield Fleet(fleet.tritons, fleet.roads, gateway, fleet.repository)
    finally:
        gateway.stop()


async def test_the_gateways_span_stands_between_the_clients_and_tritons(
    traced: Fleet, collector: Collector, poll: Poll
) -> None:
    gateway = traced.gateway
    http, rpc = [context() for _ in range(3)], [context() for _ in range(3)]
    answers = {}
    async with httpx.AsyncClient(base_url=gateway.url, headers=gateway.headers, timeout=30) as client:
        for header, trace_id, _ in http:
            answer = await client.post("/v2/models/recorder/infer", json=BODY, headers={"traceparent": header})
            assert answer.status_code == 200
            answers[trace_id] = answer
        bad_header, bad_trace, _ = context()
        refused = await client.post("/v2/models/none/infer", json=BODY, headers={"traceparent": bad_header})
        assert refused.status_code == 404
        untraced = await client.post("/v2/models/recorder/infer", json=BODY)  # the ratio of such is 0
        assert untraced.status_code == 200
    tensor = tritonclient.grpc.InferInput("INPUT", [1, 2], "FP64")
    tensor.set_data_from_numpy(np.array([[8.0, 0.0]]))
    with tritonclient.grpc.InferenceServerClient(gateway.grpc_address) as rpc_client:
        for header, _, _ in rpc:
            rpc_client.infer("recorder", [tensor], headers=gateway.headers | {"traceparent": header})
    below = [
        await asyncio.to_thread(tritons_span, collector, [trace_id for _, trace_id, _ in sent], poll)
        for sent in (http, rpc)
    ]
    assert gateway.stop() == 0  # what is left is exported on the way out
    ours = {span.trace_id: span for span in collector.spans if span.service == "tidegate"}
    assert set(ours) == {bad_trace} | {trace_id for _, trace_id, _ in [*http, *rpc]}
    for _, trace_id, span_id in [*http, *rpc]:
        assert ours[trace_id].parent_id == span_id
    for span in below:
        assert span.parent_id == ours[span.trace_id].span_id
    for trace_id, answer in answers.items():
        attributes = ours[trace_id].attributes
        assert attributes["http.response.status_code"] == 200
        assert attributes["tidegate.model"] == "recorder"
        assert attributes["tidegate.usage_id"] == answer.headers["x-tidegate-usage-id"]
        assert attributes["tidegate.stage.infer_ms"] > 0
    assert ours[bad_trace].attributes["http.response.status_code"] == 404
    assert gateway.key not in str(collector.spans)


def test_a_collector_that_is_away_costs_no_request(fleet: Fleet, tmp_path: Path, poll: Poll, unused_port: int) -> None:
    targets = ",".join(road.address for road in fleet.roads)
    gateway = GatewayProcess(tmp_path, fleet.repository, targets, poll, otlp_endpoint=f"http://127.0.0.1:{unused_port}")
    gateway.bootstrap().start()
    try:
        with httpx.Client(base_url=gateway.url, headers=gateway.headers, timeout=30) as client:
            for _ in range(20):
                assert client.post("/v2/models/recorder/infer", json=BODY).status_code == 200
    finally:
        assert gateway.stop() == 0


@pytest.fixture
def unused_port() -> int:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
