"""The shared stack's gateway under watch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live.hostile.access import near, operator
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import Gateway, Invariants
from tests.live.hostile.second import Second, second_gateway

__all__ = ["invariants", "near", "operator"]


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
def served_fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeTriton, Second]]:
    """A Triton that misbehaves as it is told, and a gateway in front of it."""
    server = FakeTriton()
    try:
        with second_gateway(tmp_path_factory.mktemp("fake"), server.address) as running:
            yield server, running
    finally:
        server.close()


@pytest.fixture
def fake(served_fake: tuple[FakeTriton, Second]) -> FakeTriton:
    """The Triton, as it was at first."""
    served_fake[0].reset()
    return served_fake[0]


@pytest.fixture
def second(served_fake: tuple[FakeTriton, Second]) -> Second:
    """The gateway in front of ``fake``."""
    return served_fake[1]
