"""Streams and budgets: reserved before the first event, settled after the last, given back when they break."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from embedded.launcher import serving
from tests.live.faults.servers import GatewayProcess
from tests.live.oip_repository import build

pytestmark = pytest.mark.live

PRICE_USD = 0.01
PRICES = f"""
version = "tests"
currency = "USD"
date = 2026-11-23
[hardware.default]
name = "a machine"
source = "tests"
per_hour = 0.1
[models.words]
per_request = {PRICE_USD}
"""
STREAM = "/v2/models/words/generate_stream"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, poll: Callable[..., None]) -> Iterator[GatewayProcess]:
    """Before a Triton with a model that answers word by word."""
    folder = tmp_path_factory.mktemp("streams")
    models = build(folder / "models")
    (folder / "prices.toml").write_text(PRICES)
    with serving(models, folder / "triton", ["words"]) as triton:
        running = GatewayProcess(folder, models, triton.grpc_url, poll, prices_file=str(folder / "prices.toml"))
        running.bootstrap().start()
        try:
            ready = f"{running.url}/v2/models/words/ready"
            poll(lambda: httpx.get(ready, headers=running.headers).status_code == 200, 60, "the model")
            yield running
        finally:
            assert running.stop() == 0


class Tenant:
    """A project with a budget for so many streams of today."""

    def __init__(self, gateway: GatewayProcess, name: str, streams: int) -> None:
        self.gateway = gateway
        self.headers = {"authorization": f"Bearer {gateway.make_key(name)}"}
        self._path = f"/admin/budgets/project/{name}/day"
        body = {"limit_usd": f"{streams * PRICE_USD:.2f}"}
        made = httpx.put(gateway.url + self._path, json=body, headers=gateway.headers, timeout=30)
        assert made.status_code == 200, made.text
        self.name = name

    def stream(self, text: str) -> tuple[int, list[dict[str, Any]]]:
        """Status and events, or the error's body as one."""
        received = b""
        with httpx.stream(
            "POST", self.gateway.url + STREAM, json={"text_input": text}, headers=self.headers, timeout=60
        ) as answer:
            try:
                for part in answer.iter_bytes():
                    received += part
            except httpx.RemoteProtocolError:
                pass  # broken off after its error event
        return answer.status_code, [json.loads(line.removeprefix(b"data: ")) for line in received.splitlines() if line]

    def state(self) -> tuple[float, float]:
        """Spent and held, in USD."""
        found = httpx.get(f"{self.gateway.url}/admin/budgets", headers=self.gateway.headers, timeout=30).json()
        (budget,) = (item for item in found["budgets"] if item["name"] == self.name)
        return float(budget["spent_usd"]), float(budget["held_usd"])

    def billed(self) -> list[tuple[str, float]]:
        """State and bill of its records, oldest first."""
        rows = self.gateway.query(
            "SELECT state, billed_pico_usd / 1e12 FROM usage_records WHERE project = ? ORDER BY usage_id", self.name
        )
        return [(state, round(billed, 6)) for state, billed in rows]


def test_a_stream_is_settled_when_it_ends(gateway: GatewayProcess, poll: Callable[..., None]) -> None:
    tenant = Tenant(gateway, "reader", streams=3)
    for _ in range(3):
        status, events = tenant.stream("one two three")
        assert (status, [event["text_output"] for event in events]) == (200, ["one", "two", "three"])
    status, events = tenant.stream("one two three")
    assert status == 402, events  # before its first event
    poll(lambda: tenant.state() == (3 * PRICE_USD, 0.0), 30, "the settled budget")
    poll(lambda: tenant.billed() == [("completed", PRICE_USD)] * 3, 30, "the bill")


def test_a_stream_that_breaks_is_not_billed_and_its_money_is_there_again(
    gateway: GatewayProcess, poll: Callable[..., None]
) -> None:
    tenant = Tenant(gateway, "unlucky", streams=1)
    for _ in range(3):
        status, events = tenant.stream("one fail two")
        assert (status, set(events[-1])) == (200, {"error"})
    assert tenant.stream("one two")[0] == 200
    assert tenant.stream("one two")[0] == 402
    poll(lambda: tenant.state() == (PRICE_USD, 0.0), 30, "the settled budget")
    poll(lambda: tenant.billed() == [("failed", 0.0)] * 3 + [("completed", PRICE_USD)], 30, "the bill")


def test_a_stream_that_its_client_leaves_half_way_is_billed(gateway: GatewayProcess, poll: Callable[..., None]) -> None:
    tenant = Tenant(gateway, "leaver", streams=3)
    with httpx.stream(
        "POST", gateway.url + STREAM, json={"text_input": "word " * 20_000}, headers=tenant.headers, timeout=60
    ) as answer:
        next(answer.iter_raw())
    poll(lambda: tenant.billed() == [("client_closed", PRICE_USD)], 30, "the bill")
    poll(lambda: tenant.state() == (PRICE_USD, 0.0), 30, "the settled budget")


def test_every_request_of_a_grpc_stream_is_settled_on_its_own(
    gateway: GatewayProcess, poll: Callable[..., None]
) -> None:
    tenant = Tenant(gateway, "caller", streams=2)
    message = pb.ModelInferRequest(model_name="words")
    message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(b"one two").to_bytes(4, "little") + b"one two")
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        replies = list(stub.ModelStreamInfer(iter([message] * 3), metadata=tuple(tenant.headers.items()), timeout=60))
    refused = [reply.error_message for reply in replies if reply.error_message]
    assert (len(replies), len(refused)) == (5, 1)
    assert "budget" in refused[0]
    poll(lambda: tenant.state() == (2 * PRICE_USD, 0.0), 30, "the settled budget")
    poll(lambda: tenant.billed() == [("completed", PRICE_USD)] * 2, 30, "the bill")
