"""The operator's daily work over HTTP."""

from __future__ import annotations

import sqlalchemy as sa

from gateway.access import keyformat
from gateway.access.limits import Limits
from gateway.access.policy import Budget
from gateway.store.tables import api_keys
from tests.gateway.access.support import dump, statements


async def test_the_life_of_a_key(operator, as_key, access):
    assert (await operator.post("/admin/organisations", json={"name": "acme"})).status_code == 201
    assert (await operator.post("/admin/projects", json={"name": "web", "organisation": "acme"})).status_code == 201
    made = await operator.post(
        "/admin/keys",
        json={"project": "web", "label": "<b>shop</b>", "scopes": ["keys:admin"], "addresses": ["127.0.0.0/8"],
              "expires_at": "2099-01-01T00:00:00Z"},
    )  # fmt: skip
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    assert keyformat.parse(key["key"]).key_id == key["key_id"]
    assert key["organisation"] == "acme"
    path = f"/admin/keys/{key['key_id']}"
    assert (await as_key(key["key"]).get(path)).json()["label"] == "<b>shop</b>"
    assert "key" not in (await operator.get(path)).json()

    rotated = await operator.post(f"{path}/rotate", json={"overlap_s": 0, "rotation": "first"})
    assert rotated.json()["key"] != key["key"]
    again = await operator.post(f"{path}/rotate", json={"overlap_s": 0, "rotation": "first"})
    assert again.json()["key"] is None
    assert (await as_key(key["key"]).get(path)).status_code == 401
    assert (await as_key(rotated.json()["key"]).get(path)).status_code == 200

    changed = await operator.patch(path, json={"label": "new", "models": ["qa"], "expires_at": None})
    assert (changed.json()["label"], changed.json()["models"], changed.json()["expires_at"]) == ("new", ["qa"], None)
    assert (await operator.patch(path, json={"label": None})).status_code == 422

    assert (await operator.delete(path)).json()["state"] == "revoked"
    assert (await operator.post(f"{path}/revoke")).status_code == 200
    assert (await as_key(rotated.json()["key"]).get(path)).status_code == 401
    assert (await operator.patch(path, json={"label": "x"})).status_code == 409


async def test_an_instant_that_cannot_be_written_is_refused(operator, make_key):
    key = (await make_key("web")).key.key_id
    for instant in ("9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.999999-00:01", "0001-01-01T00:00:00+12:00"):
        for answer in (
            await operator.post("/admin/keys", json={"project": "web", "expires_at": instant}),
            await operator.patch(f"/admin/keys/{key}", json={"expires_at": instant}),
        ):
            assert (answer.status_code, answer.json()["param"]) == (422, "expires_at")
    latest = await operator.patch(f"/admin/keys/{key}", json={"expires_at": "9999-12-31T23:59:59Z"})
    assert latest.json()["expires_at"] == "9999-12-31T23:59:59+00:00"
    assert (await operator.get("/admin/keys")).status_code == 200


async def test_a_key_stored_with_an_instant_beyond_every_calendar_is_shown(operator, make_key, store):
    key = (await make_key("web")).key.key_id
    async with store.write() as connection:
        await connection.execute(
            sa.update(api_keys).where(api_keys.c.key_id == key).values(expires_at=253_402_343_999 * 10**6)
        )
    (shown,) = (await operator.get("/admin/keys", params={"project": "web"})).json()["keys"]
    assert shown["expires_at"] == "9999-12-31T23:59:59+00:00"


async def test_keys_come_in_pages(operator, make_key):
    for _ in range(5):
        await make_key("web")
    first = (await operator.get("/admin/keys", params={"project": "web", "limit": 3})).json()
    rest = (await operator.get("/admin/keys", params={"project": "web", "after": first["next"]})).json()
    assert (len(first["keys"]), len(rest["keys"]), rest["next"]) == (3, 2, None)


async def test_tenants_are_listed(operator, tenant, victim):
    assert (await operator.get("/admin/organisations")).json()["organisations"] == ["acme", "other", "tidegate"]
    assert (await tenant.get("/admin/organisations")).json()["organisations"] == ["acme"]
    assert [project["name"] for project in (await tenant.get("/admin/projects")).json()["projects"]] == ["web"]
    assert (await tenant.post("/admin/projects", json={"name": "app"})).json() == {
        "name": "app", "organisation": "acme",
    }  # fmt: skip
    assert (await tenant.post("/admin/projects", json={"name": "shop"})).status_code == 409
    assert (await operator.post("/admin/projects", json={"name": "x", "organisation": "no"})).status_code == 404
    assert (await operator.post("/admin/organisations", json={"name": "acme"})).status_code == 409


async def test_tiers_and_limits(operator, tenant, access):
    assert (await operator.put("/admin/tiers/gold", json={"requests_per_second": 5, "burst": 9})).status_code == 200
    assert (await tenant.get("/admin/tiers")).json() == {"tiers": {"gold": {"requests_per_second": 5.0, "burst": 9}}}
    assert (await tenant.put("/admin/limits/project/web", json={"concurrency": 3})).status_code == 200
    await operator.put("/admin/limits/model/qa", json={"concurrency": 7})
    assert len((await tenant.get("/admin/limits")).json()["limits"]) == 2
    assert access.policies.current.rules["project", "web"].concurrency == 3
    assert (await tenant.delete("/admin/limits/project/web")).status_code == 200
    assert (await tenant.delete("/admin/limits/project/web")).status_code == 404
    assert (await operator.delete("/admin/tiers/gold")).status_code == 200
    for body in ({"burst": 0}, {"rps": 1}, {"concurrency": "x"}, []):
        assert (await operator.put("/admin/tiers/gold", json=body)).status_code == 422
    assert (await operator.put("/admin/limits/planet/web", json={})).status_code == 422


async def test_budgets(operator, tenant, victim):
    made = await tenant.put("/admin/budgets/project/web/day", json={"limit_usd": "1.000000000001"})
    assert made.json()["limit_usd"] == "1.000000000001"
    await operator.put("/admin/budgets/project/shop/month", json={"limit_usd": 5})
    await operator.put("/admin/budgets/organisation/acme/month", json={"limit_usd": 5})
    seen = (await tenant.get("/admin/budgets")).json()["budgets"]
    assert [(budget["level"], budget["name"]) for budget in seen] == [("organisation", "acme"), ("project", "web")]
    assert len((await operator.get("/admin/budgets")).json()["budgets"]) == 3
    assert (await tenant.delete("/admin/budgets/project/web/day")).status_code == 200
    for body in ({"limit_usd": -1}, {"limit_usd": "NaN"}, {"limit_usd": 1e9}, {"limit_usd": "x"}, {}):
        assert (await operator.put("/admin/budgets/project/web/day", json=body)).status_code == 422
    assert (await operator.put("/admin/budgets/project/web/year", json={"limit_usd": 1})).status_code == 422


async def test_limits_and_budgets_come_in_pages_and_cost_no_statement_each(operator, tenant, access, make_key, store):
    keys = [(await make_key("web", organisation="acme")).key.key_id for _ in range(5)]
    stranger = (await make_key("shop", organisation="other")).key.key_id
    for name in (*keys, stranger):
        await access.policies.set_rule("key", name, Limits(concurrency=1))
        await access.policies.set_budget(Budget("key", name, "day", 1))
    for client, expected in ((tenant, keys), (operator, [*keys, stranger])):
        for path in ("limits", "budgets"):
            names, after = [], ""
            while after is not None:
                page = (await client.get(f"/admin/{path}", params={"limit": 2, "after": after})).json()
                assert len(page[path]) <= 2
                names += [item["name"] for item in page[path]]
                after = page["next"]
            assert names == sorted(expected)
    with statements(store) as seen:
        assert len((await tenant.get("/admin/limits")).json()["limits"]) == 5
    assert sum("SELECT" in statement for statement in seen) <= 4


async def test_the_audit_is_read_and_verified(operator, tenant):
    await operator.put("/admin/tiers/gold", json={"concurrency": 1})
    records = (await operator.get("/admin/audit", params={"limit": 2})).json()["records"]
    assert records[0]["action"] == "tier.set"
    assert records[0]["address"] == "127.0.0.1"
    assert records[0]["request_id"]
    older = (await operator.get("/admin/audit", params={"before": records[-1]["sequence"]})).json()["records"]
    assert older[0]["sequence"] == records[-1]["sequence"] - 1
    found = (await operator.get("/admin/audit/verify")).json()
    assert (found["whole"], found["finding"]) == (True, None)


async def test_usage_is_the_projects_own(operator, as_key, make_key):
    reader = as_key((await make_key("web", "usage:read")).text)
    for client in (operator, reader):
        assert (await client.get("/admin/usage", params={"group_by": "model"})).status_code == 200
        assert (await client.get("/admin/usage/records")).status_code == 200
    assert (await reader.get("/admin/keys")).status_code == 403


async def test_the_description_names_every_route(operator):
    paths = (await operator.get("/admin/openapi.json")).json()["paths"]
    assert {"/admin/keys/{key_id}", "/admin/budgets/{level}/{name}/{period}", "/admin/audit", "/admin/usage"} <= set(
        paths
    )


async def test_no_audit_no_change(operator, access, victim):
    access.audit.anchor_file.unlink()
    access.audit.anchor_file.mkdir()
    await operator.put("/admin/tiers/one", json={"concurrency": 1})
    answer = await operator.delete(f"/admin/keys/{victim.key_id}")
    assert answer.status_code == 503
    assert answer.headers["retry-after"].isdigit()
    assert (await access.keys.get(victim.key_id)).revoked_at is None
    access.audit.anchor_file.rmdir()


async def test_no_secret_appears_anywhere(operator, as_key, access, store, migrated_settings, capfd, caplog):
    caplog.set_level("DEBUG")
    made = (await operator.post("/admin/projects", json={"name": "web"})).status_code
    assert made == 201
    canary = (await operator.post("/admin/keys", json={"project": "web", "scopes": ["keys:admin"]})).json()
    secret = canary["key"].split("_")[3]
    client, path = as_key(canary["key"]), f"/admin/keys/{canary['key_id']}"
    answers = [
        await client.get(path),
        await client.get("/admin/audit"),
        await client.get("/admin/nothing"),
        await client.post("/admin/keys", content=b"{"),
        await client.post("/admin/keys", json={"project": canary["key"]}),
        await client.post("/admin/keys", json={"project": "web", "label": "x" * 200}),
        await client.get("/admin/keys", params={"api_key": canary["key"]}),
        await client.get("/admin/keys", headers={"X-API-Key": canary["key"]}),
        await as_key(canary["key"][:-1] + "!").get(path),
        await as_key(canary["key"] + "x").get(path),
        await operator.delete(path),
        await client.get(path),
        await operator.get("/admin/audit"),
    ]
    assert {answer.status_code for answer in answers} >= {200, 400, 401, 403, 422}
    await access.authenticator._flush(touch=True, all_=True)
    assert not any(secret in answer.text for answer in answers)
    assert not any(secret in str(answer.headers) for answer in answers)
    assert secret not in await dump(store)
    assert not any(secret.encode() in file.read_bytes() for file in migrated_settings.data_dir.iterdir())
    # Not the client's own log, nor the access log that the gateway has switched off and pytest listens to.
    ours = [record for record in caplog.records if not record.name.startswith(("http", "uvicorn.access"))]
    assert secret not in "".join(capfd.readouterr()) + "".join(record.getMessage() for record in ours)
