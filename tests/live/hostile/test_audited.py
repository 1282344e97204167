"""Exactly one audit record for every administrative event, refused or not, and none for what changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.live.hostile.access import ask, bearer, new_key, unknown_key
from tests.live.hostile.invariants import Invariants

pytestmark = pytest.mark.live

INFER = ("POST", "/v2/models/identity/infer")


def records(operator: httpx.Client) -> list[dict[str, Any]]:
    answer = operator.get("/admin/audit", params={"limit": 1000})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["records"])


def test_every_change_is_one_record_under_its_request_id(invariants: Invariants, operator: httpx.Client) -> None:
    made = new_key(operator)
    key = f"/admin/keys/{made['key_id']}"
    project = f"/admin/budgets/project/{made['project']}/day"
    changes = (
        ("POST", "/admin/keys", {"project": "alpha-web"}, "key.create"),
        ("PATCH", key, {"label": "changed"}, "key.update"),
        ("POST", f"{key}/rotate", {"rotation": "audited"}, "key.rotate"),
        ("POST", f"{key}/revoke", None, "key.revoke"),
        ("PUT", "/admin/tiers/audited", {"concurrency": 9}, "tier.set"),
        ("PUT", "/admin/limits/model/nothing", {"concurrency": 9}, "limit.set"),
        ("PUT", project, {"limit_usd": "1000"}, "budget.set"),
        ("DELETE", project, None, "budget.remove"),
        ("DELETE", "/admin/limits/model/nothing", None, "limit.remove"),
        ("DELETE", "/admin/tiers/audited", None, "tier.remove"),
    )
    nothing = (
        ("POST", f"{key}/rotate", {"rotation": "audited"}, 200),  # done already, and by now revoked
        ("POST", f"{key}/revoke", None, 200), ("GET", key, None, 200), ("PATCH", key, {"label": "x"}, 409),
        ("POST", "/admin/keys", {"project": "alpha-web", "scopes": ["root"]}, 422),
        ("PUT", "/admin/tiers/audited", {"concurrency": -1}, 422), ("DELETE", project, None, 404),
    )  # fmt: skip
    expected: dict[str, str] = {}
    unchanged: set[str] = set()
    with invariants.case() as case:
        for method, path, body, action in changes:
            answer = case.see(operator.request(method, path, json=body))
            assert answer.status_code in {200, 201}, answer.text
            expected[answer.headers["x-request-id"]] = action
        for method, path, body, status in nothing:
            answer = case.see(operator.request(method, path, json=body))
            assert answer.status_code == status, (method, path, answer.text)
            unchanged.add(answer.headers["x-request-id"])
    found = [(record["request_id"], record["action"]) for record in records(operator)]
    counted = Counter(action for request_id, action in found if request_id in expected)
    assert counted == Counter(expected.values())
    assert {request_id: action for request_id, action in found if request_id in expected} == expected
    assert unchanged & {request_id for request_id, _ in found} == set()


def test_refused_credentials_are_one_record_for_each_address(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client, poll: Callable[..., None]
) -> None:
    """Counted, not listed: whoever guesses fills no disk."""
    attackers = [near() for _ in range(3)]
    refused = Counter[str]()
    with invariants.case() as case:
        for client in attackers:
            address = str(client._transport._pool._local_address)  # type: ignore[attr-defined]
            for _ in range(4):
                case.refused(ask(client, *INFER, headers=bearer(unknown_key())), 401, "oip")
                refused[address] += 1

    def written() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {address: [] for address in refused}
        for record in records(operator):
            if record["action"] == "auth.refused" and record["object"] in found:
                found[record["object"]].append(record)
        return found

    poll(lambda: all(written().values()), 30, "a record for each address")
    for address, of_it in written().items():
        assert len(of_it) == 1
        assert of_it[0]["result"] == "denied"
        assert of_it[0]["address"] == address
        counts = json.loads(of_it[0]["details"])
        assert (
            1 <= sum(counts.values()) <= refused[address]
        )  # what came after the first flush is written a minute later
