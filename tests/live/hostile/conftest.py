"""The shared stack's gateway under watch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.live.hostile.access import near, operator
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import Gateway, Invariants
from tests.live.hostile.second import Second, second_gateway

__all__ = ["invariants", "near", "operator"]

WAYS = ("http", "grpc")
"""To infer; ``@pytest.mark.parametrize("way", WAYS, indirect=True)`` runs a test in both."""


@pytest.fixture(scope="session")
def invariants(stack: Any) -> Iterator[Invariants]:
    """Every check of :mod:`tests.live.hostile.invariants` on the shared stack's gateway."""
    operator = stack.tidegate(
        "keys", "create", "--project", "operations", "--organisation", "tidegate", "--scope", "audit:read", "--json"
    )
    key = str(json.loads(operator)["key"])
    with httpx.Client(base_url=stack.gateway_url, headers={"authorization": f"Bearer {key}"}, timeout=30.0) as client:

        def audit_records() -> int:
            answer = client.get("/admin/audit", params={"limit": 1})
            assert answer.status_code == 200, answer.text
            return int(answer.json()["records"][0]["sequence"])

        watched = Invariants(
            Gateway(
                url=stack.gateway_url,
                grpc_address=stack.grpc_address,
                metrics_url=stack.metrics_url,
                log_file=stack.data_dir / "logs" / "gateway.log",
                key=stack.key,
                secrets=(key,),
                private=(str(stack.data_dir), *stack.triton.values()),
                auditor=audit_records,
            )
        )
        try:
            yield watched
        finally:
            watched.close()


@pytest.fixture(scope="session")
def served_fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[FakeTriton, Second]]]:
    """A Triton that misbehaves as it is told and a gateway in front of it, for each way to infer."""
    with ExitStack() as stack:
        running = {}
        for way in WAYS:
            server = FakeTriton()
            stack.callback(server.close)
            target = server.target if way == "http" else server.address
            second = stack.enter_context(second_gateway(tmp_path_factory.mktemp(f"fake-{way}"), target))
            second.gateway.private += (server.address,)
            running[way] = (server, second)
        yield running


@pytest.fixture(scope="session")
def served_fake(served_fakes: dict[str, tuple[FakeTriton, Second]]) -> tuple[FakeTriton, Second]:
    """A Triton that misbehaves as it is told, and a gateway in front of it that infers over HTTP."""
    return served_fakes[WAYS[0]]


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    """How the gateway in front of ``fake`` infers: ``http``, or what a test that is run in all :data:`WAYS` says."""
    return str(getattr(request, "param", WAYS[0]))


@pytest.fixture
def fake(served_fakes: dict[str, tuple[FakeTriton, Second]], way: str) -> FakeTriton:
    """The Triton, as it was at first."""
    served_fakes[way][0].reset()
    return served_fakes[way][0]


@pytest.fixture
def second(served_fakes: dict[str, tuple[FakeTriton, Second]], way: str) -> Second:
    """The gateway in front of ``fake``."""
    return served_fakes[way][1]
