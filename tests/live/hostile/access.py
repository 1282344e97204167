"""Fixtures and helpers of the tests of access: clients with addresses of their own, the operator, keys."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from gateway.access import keyformat
from tests.live.hostile.invariants import GOOD, Invariants

_numbers = itertools.count(2)


@pytest.fixture
def near(invariants: Invariants) -> Iterator[Callable[..., httpx.Client]]:
    """Clients that come from an address of their own, so that no test inherits another one's refusals."""
    opened: list[httpx.Client] = []

    def client(key: str | None = None, **headers: str) -> httpx.Client:
        number = next(_numbers)
        transport = httpx.HTTPTransport(local_address=f"127.1.{number // 250}.{number % 250 + 2}")
        if key is not None:
            headers = {"authorization": f"Bearer {key}"} | headers
        opened.append(httpx.Client(base_url=invariants.gateway.url, headers=headers, transport=transport, timeout=30.0))
        return opened[-1]

    yield client
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def operator(stack: Any) -> Iterator[httpx.Client]:
    """The operator's client."""
    made = stack.tidegate(
        "keys", "create", "--project", "operations", "--organisation", "tidegate", "--scope", "keys:admin",
        "--scope", "audit:read", "--scope", "infer", "--json",
    )  # fmt: skip
    headers = {"authorization": f"Bearer {json.loads(made)['key']}"}
    with httpx.Client(base_url=stack.gateway_url, headers=headers, timeout=30.0) as client:
        for name in ("alpha", "beta"):
            client.post("/admin/organisations", json={"name": name})
            client.post("/admin/projects", json={"name": f"{name}-web", "organisation": name})
        yield client


def new_key(operator: httpx.Client, project: str = "alpha-web", *scopes: str, **body: Any) -> dict[str, Any]:
    made = operator.post("/admin/keys", json={"project": project, "scopes": list(scopes) or ["infer"]} | body)
    assert made.status_code == 201, made.text
    return dict(made.json())


def ask(client: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    return client.request(method, path, json=None if method == "GET" else GOOD, **options)


def unknown_key() -> str:
    return keyformat.generate(keyformat.generate_id(), test=False).text


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
