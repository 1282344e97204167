"""Who may do what on the admin API: HOSTILE requests 1 to 14 of section 1.1 that concern it."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

pytestmark = pytest.mark.parametrize("migrated_settings", ["sqlite"], indirect=True)  # rights ask no database

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND")
PATHS = ("/admin", "/admin/", "/admin/keys", "/admin/keys/x", "/admin/audit", "/admin/audit/verify", "/admin/tiers/x",
         "/admin/budgets/project/web/day", "/admin/usage", "/admin/openapi.json", "/admin/nothing")  # fmt: skip


async def test_no_route_and_no_method_answers_without_the_right(as_key, user):
    nobody = as_key(None)
    for method, path in itertools.product(METHODS, PATHS):
        answer = await nobody.request(method, path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        answer = await user.request(method, path)
        assert answer.status_code == 403
        if method != "HEAD":
            assert answer.json()["code"] == "forbidden"
        assert answer.headers["x-request-id"]


async def test_problems_are_problem_json(as_key):
    answer = await as_key("tg_live_nonsense").get("/admin/keys")
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(body)
    assert body["status"] == 401
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "nonsense" not in answer.text


async def test_a_tenant_sees_its_own_keys_only(tenant, victim):
    listed = (await tenant.get("/admin/keys")).json()["keys"]
    assert {key["organisation"] for key in listed} == {"acme"}
    assert (await tenant.get("/admin/keys", params={"project": "shop"})).json()["keys"] == []


async def test_another_tenants_key_does_not_exist(tenant, victim, access):
    path = f"/admin/keys/{victim.key_id}"
    missing = await tenant.get("/admin/keys/nonexistent0")
    for answer in (
        await tenant.get(path),
        await tenant.patch(path, json={"label": "mine"}),
        await tenant.post(f"{path}/rotate", json={}),
        await tenant.post(f"{path}/revoke"),
        await tenant.delete(path),
    ):
        assert answer.status_code == 404
        assert answer.json()["detail"] == missing.json()["detail"]
    assert await access.keys.get(victim.key_id) == victim


async def test_another_tenants_project_takes_no_key_no_limit_no_budget(tenant, victim, access):
    for answer in (
        await tenant.post("/admin/keys", json={"project": "shop"}),
        await tenant.post("/admin/projects", json={"name": "p", "organisation": "other"}),
        await tenant.put("/admin/limits/project/shop", json={"concurrency": 1}),
        await tenant.put(f"/admin/limits/key/{victim.key_id}", json={"concurrency": 1}),
        await tenant.put("/admin/budgets/project/shop/day", json={"limit_usd": 1}),
        await tenant.delete("/admin/budgets/project/shop/day"),
    ):
        assert answer.status_code == 404
    assert access.policies.current.rules == {}


async def test_what_is_the_operators_is_forbidden_to_tenants(tenant, make_key, as_key):
    auditor = as_key((await make_key("web", "audit:read", "keys:admin", organisation="acme")).text)
    for answer in (
        await tenant.post("/admin/organisations", json={"name": "new"}),
        await tenant.put("/admin/tiers/gold", json={"concurrency": 1000}),
        await tenant.delete("/admin/tiers/default"),
        await tenant.put("/admin/limits/model/qa", json={"concurrency": 1}),
        await tenant.put("/admin/limits/organisation/acme", json={"concurrency": 10**6}),
        await tenant.put("/admin/budgets/organisation/acme/month", json={"limit_usd": 10**6}),
        await tenant.get("/admin/audit"),
        await auditor.get("/admin/audit"),
        await auditor.get("/admin/audit/verify"),
    ):
        assert answer.status_code == 403


async def test_nobody_gives_a_right_that_he_lacks(tenant, access):
    for scope in ("audit:read", "models:admin"):
        answer = await tenant.post("/admin/keys", json={"project": "web", "scopes": ["infer", scope]})
        assert answer.status_code == 403
    own = (await tenant.get("/admin/keys")).json()["keys"][0]
    answer = await tenant.patch(f"/admin/keys/{own['key_id']}", json={"scopes": ["keys:admin", "audit:read"]})
    assert answer.status_code == 403
    assert (await access.keys.get(own["key_id"])).scopes == tuple(own["scopes"])


async def test_nobody_takes_over_a_key_that_may_more(tenant, make_key):
    strong = await make_key("web", "infer", "audit:read", organisation="acme")
    path = f"/admin/keys/{strong.key.key_id}"
    assert (await tenant.post(f"{path}/rotate", json={})).status_code == 403
    assert (await tenant.patch(path, json={"models": ["qa"]})).status_code == 403


async def test_nobody_gives_a_model_that_he_may_not_use(as_key, make_key):
    admin = as_key((await make_key("web", "keys:admin", organisation="acme", models=("digits",))).text)
    assert (await admin.post("/admin/keys", json={"project": "web"})).status_code == 403
    assert (await admin.post("/admin/keys", json={"project": "web", "models": ["qa"]})).status_code == 403
    assert (await admin.post("/admin/keys", json={"project": "web", "models": ["digits"]})).status_code == 201


async def test_a_tenant_makes_no_test_key_and_gives_no_tier_but_its_own(tenant, operator, as_key, make_key, access):
    await operator.put("/admin/tiers/unlimited", json={})
    before = await access.keys.page(organisation="acme")
    for body in ({"test": True}, {"tier": "unlimited"}, {"tier": "not-defined"}, {"test": True, "tier": "default"}):
        assert (await tenant.post("/admin/keys", json={"project": "web"} | body)).status_code == 403
    path = f"/admin/keys/{before[0].key_id}"
    assert (await tenant.patch(path, json={"tier": "unlimited"})).status_code == 403
    assert (await tenant.patch(path, json={"test": True})).status_code == 422
    assert [key.tier for key in await access.keys.page(organisation="acme")] == ["default"]
    # Its own tier is what its keys get, named or not; and one that the operator chose stays.
    bronze = as_key((await make_key("web", "keys:admin", organisation="acme", tier="bronze")).text)
    for body in ({}, {"tier": "bronze"}):
        made = await bronze.post("/admin/keys", json={"project": "web"} | body)
        assert (made.status_code, made.json()["tier"], made.json()["test"]) == (201, "bronze", False)
    gold = (await make_key("web", organisation="acme", tier="gold", test=True)).key.key_id
    changed = await bronze.patch(f"/admin/keys/{gold}", json={"tier": "gold", "label": "x"})
    assert (changed.status_code, changed.json()["tier"]) == (200, "gold")
    assert (await bronze.patch(f"/admin/keys/{gold}", json={"tier": "default"})).status_code == 403
    made = await operator.post("/admin/keys", json={"project": "web", "tier": "unlimited", "test": True})
    assert (made.status_code, made.json()["tier"], made.json()["test"]) == (201, "unlimited", True)


async def test_fields_that_are_none_change_nothing(tenant):
    own = (await tenant.get("/admin/keys")).json()["keys"]
    for field in ("budget", "role", "organisation", "temp_budget_increase", "key_id", "is_admin"):
        answer = await tenant.post("/admin/keys", json={"project": "web", field: "x"})
        assert answer.status_code == 422
        assert answer.json()["param"] == field
        answer = await tenant.patch(f"/admin/keys/{own[0]['key_id']}", json={field: "x", "label": "changed"})
        assert answer.status_code == 422
    now = (await tenant.get("/admin/keys")).json()["keys"]
    assert [key | {"last_used_at": None} for key in now] == [key | {"last_used_at": None} for key in own]


async def test_forged_headers_are_nothing(address, user, as_key):
    forged = {"X-Forwarded-For": "127.0.0.1", "X-User": "root", "X-Tenant": "tidegate", "X-Scopes": "keys:admin",
              "X-Request-Id": "mine"}  # fmt: skip
    assert (await user.get("/admin/keys", headers=forged)).status_code == 403
    assert (await as_key(None).get("/admin/keys", headers=forged)).status_code == 401


async def test_a_key_in_the_url_is_no_key(as_key, make_key):
    key = (await make_key("web", "keys:admin")).text
    assert (await as_key(None).get("/admin/keys", params={"api_key": key})).status_code == 401
    assert (await as_key(key).get("/admin/keys", params={"api_key": key})).status_code == 400
    assert (await as_key(key).get("/admin/keys", headers={"X-API-Key": key})).status_code == 400


async def raw(address, *lines: str) -> tuple[int, dict[str, str]]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
    await writer.drain()
    answer = (await reader.read()).decode("latin-1")
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith("{") else {}


ODD_PATHS = (
     "//admin/keys", "/admin//keys", "/admin/%6beys", "/admin/./keys", "/x/../admin/keys", "/admin/%2e%2e/admin/keys",
     "/admin/keys;x", "/admin/keys%00", "/admin%2fkeys", "/ADMIN/keys", "/admin/keys%252f", "/admin/keys/",
)  # fmt: skip


async def test_odd_paths_open_nothing(address, user, operator):
    for path, (client, expected) in itertools.product(ODD_PATHS, ((user, {403}), (operator, {404, 405}))):
        header = f"Authorization: {client.headers['authorization']}"
        status, _ = await raw(address, f"GET {path} HTTP/1.1", "Host: evil", header)
        assert status in expected


async def test_two_authorization_headers_are_refused(address, operator):
    header = f"Authorization: {operator.headers['authorization']}"
    status, body = await raw(address, "GET /admin/keys HTTP/1.1", "Host: x", header, header)
    assert (status, body["code"]) == (400, "malformed")


async def test_sql_and_other_junk_in_authorization(as_key, address):
    for junk in ("' OR 1=1--", "x" * 60_000, "tg_live_' UNION SELECT 1--"):
        answer = await as_key(junk).get("/admin/keys")
        assert answer.status_code in (401, 429)
        assert "SQL" not in answer.text
    status, _ = await raw(address, "GET /admin/keys HTTP/1.1", "Host: x", "Authorization: Bearer \xff\xfe")
    assert status in (401, 429)


async def test_refusals_are_in_the_audit_once(user, as_key, access, operator):
    await user.get("/admin/keys")
    await as_key("tg_live_nonsense").get("/admin/keys")
    await access.authenticator._flush(touch=False, all_=True)
    records = [record for record in await access.audit.records(limit=1000) if record.action == "auth.refused"]
    counted = [item for record in records for item in json.loads(record.details).items()]
    assert sorted((reason.split()[0], count) for reason, count in counted) == [("forbidden", 1), ("invalid", 1)]


async def test_who_guesses_is_told_which_limit_it_was(as_key):
    guesser = as_key("tg_live_nonsense")
    answers = [await guesser.get("/admin/keys") for _ in range(30)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["type"].endswith("#quota-exceeded")
    assert refused.json()["violated-policies"] == ["address_refusals"]
    assert refused.headers["ratelimit"].startswith('"address_refusals";r=0;t=')
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_body_too_large_is_refused(operator, tenant):
    answer = await operator.post("/admin/keys", content=b" " * 70_000)
    assert answer.status_code == 413
    assert (await operator.get("/admin/keys")).status_code == 200


async def test_a_body_that_is_none_is_refused(operator):
    for content in (b"", b"{", b"[]", b"null", b"\xff", b'{"project": NaN}', b"[" * 5000):
        answer = await operator.post("/admin/keys", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), content
        assert answer.headers["content-type"] == "application/problem+json"
