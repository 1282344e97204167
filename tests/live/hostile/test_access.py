"""Authentication and authorisation (section 1.1) against the running stack: cases 1 to 16."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.access import keyformat
from tests.live.hostile.access import ask, bearer, new_key, unknown_key
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD, ROOT, Invariants
from tests.live.hostile.second import Second, second_gateway
from tests.live.hostile.wire import request, talk

pytestmark = pytest.mark.live

PLACES = (
    ("POST", "/v2/models/identity/infer", "oip"), ("GET", "/v2/models/identity", "oip"),
    ("POST", "/v2/repository/index", "oip"), ("POST", "/hf/models/sentiment", "hf"),
    ("POST", "/v1/embeddings", "openai"), ("GET", "/v1/models", "openai"), ("POST", "/tei/embeddings/embed", "tei"),
    ("GET", "/admin/keys", "admin"), ("POST", "/admin/nothing", "admin"),
)  # fmt: skip
REVOKED_WITHIN_S = 5.0
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND")
ADMIN_PATHS = (
    "/admin", "/admin/", "/admin/keys", "/admin/keys/x", "/admin/keys/x/revoke", "/admin/organisations",
    "/admin/projects", "/admin/tiers/x", "/admin/limits/key/x", "/admin/budgets/project/x/day", "/admin/usage",
    "/admin/usage/records", "/admin/audit", "/admin/audit/verify", "/admin/openapi.json", "/admin/nothing",
)  # fmt: skip


# --- 1 to 7: credentials


def test_01_no_credential(invariants: Invariants, near: Callable[..., httpx.Client]) -> None:
    client = near()
    with invariants.case() as case:
        for method, path, dialect in PLACES:
            answer = case.refused(ask(client, method, path), 401, dialect)
            assert answer.headers["www-authenticate"].startswith("Bearer ")


def malformed(good: str) -> list[str]:
    parsed = keyformat.parse(good)
    assert parsed is not None
    other = "0" if good[-1] != "0" else "1"
    return [
        good[:-1] + other, good[:30] + other + good[31:], good[:-1], good + "0", good.replace("tg_", "tk_"),
        good.replace("live", "prod").replace("test", "prod"), good.upper(), good.replace("_", "-"), "tg_live_", "tg",
        "*", "sk-" + good[3:], " ".join(good), good[::-1],
    ]  # fmt: skip


def test_02_malformed_keys(invariants: Invariants, near: Callable[..., httpx.Client]) -> None:
    with invariants.case() as case:
        for wrong in malformed(unknown_key()) + malformed(invariants.gateway.key):
            client = near()
            for method, path, dialect in PLACES[:2]:
                answer = ask(client, method, path, headers={b"authorization": b"Bearer " + wrong.encode("latin-1")})
                case.refused(answer, 401, dialect)
                assert wrong not in answer.text


def test_03_to_05_unknown_revoked_and_expired_keys_are_one_answer(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client, poll: Callable[..., None]
) -> None:
    revoked = new_key(operator)
    assert operator.post(f"/admin/keys/{revoked['key_id']}/revoke").status_code == 200
    soon = time.time() + 2
    expired = new_key(operator, expires_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(soon)))
    poll(lambda: time.time() > soon + 0.5, 10, "the key's end")
    presented = {"unknown": unknown_key(), "malformed": unknown_key()[:-1] + "!",
                 "revoked": revoked["key"], "expired": expired["key"]}  # fmt: skip
    invariants.gateway.secrets += tuple(presented.values())
    with invariants.case() as case:
        for method, path, dialect in PLACES:
            bodies = set()
            for key in presented.values():
                answer = case.refused(ask(near(key), method, path), 401, dialect)
                shown = answer.text.replace(answer.headers["x-request-id"], "<id>")
                names = sorted(set(answer.headers) - {"server-timing"})
                bodies.add((shown, answer.headers.get("www-authenticate"), tuple(names)))
            assert len(bodies) == 1, bodies


def test_04_a_key_revoked_by_another_process_ends_within_the_bound(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client, stack: Any
) -> None:
    made = new_key(operator)
    client = near(made["key"])
    assert ask(client, *PLACES[0][:2]).status_code == 200
    stack.tidegate("keys", "revoke", made["key_id"])  # the command has its own way to the database
    revoked = time.monotonic()
    while (status := ask(client, *PLACES[0][:2]).status_code) == 200:
        assert time.monotonic() < revoked + REVOKED_WITHIN_S + 1.0
        time.sleep(0.05)
    assert status == 401


def command(second: Second, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        env=second.environment, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
def test_04_under_load_every_gateway_ends_a_revoked_key_within_the_bound(tmp_path: Path) -> None:
    """Requests without a pause on two gateways with one database: none that begins after the bound passes."""
    triton = FakeTriton()
    stop = threading.Event()
    passed: dict[str, list[float]] = {}
    refused: dict[str, threading.Event] = {}
    # Without the grace that keys have while a database is away: on a busy machine it may seem to be.
    settings: dict[str, object] = {"key_outage_ttl_s": 0}
    shared = settings | {
        "database_url": f"sqlite+aiosqlite:///{tmp_path}/one/tidegate.db", "pepper_file": tmp_path / "one/pepper",
        "audit_key_file": tmp_path / "one/audit.key",
    }  # fmt: skip

    def hammer(url: str, key: str) -> None:
        with httpx.Client(headers=bearer(key), timeout=30.0) as client:
            while not stop.is_set():
                begun = time.monotonic()
                status = client.post(f"{url}/v2/models/identity/infer", json=GOOD).status_code
                if status == 200:
                    passed[url].append(begun)
                elif status in {401, 429}:
                    refused[url].set()

    try:
        with (
            second_gateway(tmp_path / "one", triton.address, **settings) as one,
            second_gateway(tmp_path / "two", triton.address, **shared) as two,
        ):
            made = json.loads(command(one, "keys", "create", "--project", "tests", "--json"))
            urls = [one.gateway.url, two.gateway.url]
            passed.update({url: [] for url in urls})
            refused.update({url: threading.Event() for url in urls})
            threads = [threading.Thread(target=hammer, args=(url, made["key"])) for url in urls * 4]
            for thread in threads:
                thread.start()
            try:
                deadline = time.monotonic() + 60
                while not all(len(times) > 100 for times in passed.values()):
                    assert time.monotonic() < deadline, {url: len(times) for url, times in passed.items()}
                    time.sleep(0.05)
                command(one, "keys", "revoke", made["key_id"])
                revoked = time.monotonic()
                assert all(event.wait(60) for event in refused.values())
                time.sleep(max(0.0, revoked + REVOKED_WITHIN_S + 2 - time.monotonic()))  # the bound, and beyond it
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            late = {url: [begun - revoked for begun in times if begun > revoked + REVOKED_WITHIN_S]
                    for url, times in passed.items()}  # fmt: skip
            assert late == {url: [] for url in urls}
    finally:
        triton.close()


@pytest.mark.parametrize(
    "value",
    ["Bearer ' OR 1=1--", "Bearer '; DROP TABLE api_keys; --",
     "Bearer tg_live_' UNION SELECT digest FROM key_secrets--",
     "Bearer \" OR \"\"=\"", "Bearer %27%20OR%201%3D1", "Bearer {\"$ne\": null}", "Bearer ../../pepper",
     "Basic " + base64.b64encode(b"admin:' OR 1=1--").decode(), "Bearer", "Digest username=\"x\"", "' OR 1=1--",
     "Bearer " + "A" * 9000],
)  # fmt: skip
def test_06_sql_and_other_injections(invariants: Invariants, near: Callable[..., httpx.Client], value: str) -> None:
    client = near()
    with invariants.case() as case:
        for method, path, dialect in (PLACES[0], PLACES[3], PLACES[7]):
            answer = case.refused(ask(client, method, path, headers={"authorization": value}), 401, dialect)
            assert not re.search(r"sql|syntax|sqlite|postgres|unterminated", answer.text, re.IGNORECASE)


@pytest.mark.parametrize("value", [b"Bearer tg_live_\0", b"Bearer " + b"A" * 65536, b"Bearer \xff\xfe"])
def test_06_bytes_that_no_header_has(invariants: Invariants, value: bytes) -> None:
    with invariants.case() as case:
        head = b"GET /v2/models/identity HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: "
        (answer,) = talk(invariants.gateway.url, head + value + b"\r\n\r\n")
        assert case.see(answer).status_code in {400, 401, 431}


def test_07_two_credentials_and_keys_in_the_url(invariants: Invariants, near: Callable[..., httpx.Client]) -> None:
    key = invariants.gateway.key
    good = ("authorization", f"Bearer {key}")
    twice = ([good, good], [good, ("authorization", "Bearer x")], [good, ("x-api-key", key)],
             [("x-api-key", key), ("x-api-key", key)])  # fmt: skip
    with invariants.case() as case:
        client = near()
        for method, path, dialect in PLACES:
            for headers in twice:
                case.refused(ask(client, method, path, headers=headers), 400, dialect)
            for name in ("api_key", "key", "token", "access_token"):
                case.refused(ask(client, method, f"{path}?{name}={key}", headers=[good]), 400, dialect)
    # Alone in the URL it is no key at all; it must not be in the log either, which the case looks at.
    with invariants.case() as case:
        for name in ("api_key", "key", "token", "access_token", "authorization"):
            client = near()
            for method, path, dialect in PLACES[:4]:
                case.refused(ask(client, method, f"{path}?{name}={key}"), 401, dialect)


# --- 9 to 14: rights


def test_09_a_model_that_was_not_granted_is_as_forbidden_as_one_that_does_not_exist(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client
) -> None:
    client = near(new_key(operator, models=["digits"])["key"])
    with invariants.case() as case:
        for path, body, dialect in (
            ("/v2/models/{}/infer", GOOD, "oip"), ("/hf/models/{}", {"inputs": "a"}, "hf"),
            ("/tei/{}/embed", {"inputs": "a"}, "tei"),
        ):  # fmt: skip
            answers = [
                case.refused(client.post(path.format(model), json=body), 403, dialect).text
                for model in ("identity", "sentiment", "does-not-exist", "DIGITS")
            ]
            shown = {re.sub(r'"request_id":"[^"]*"', "", text) for text in answers}
            assert len(shown) == 1
        for model in ("identity", "does-not-exist"):
            case.refused(client.post("/v1/embeddings", json={"model": model, "input": "a"}), 403, "openai")
            case.refused(client.get(f"/v2/models/{model}"), 403, "oip")
            case.refused(client.get(f"/v2/models/{model}/stats"), 403, "oip")
        listed = client.get("/v1/models").json()["data"]
        assert {model["id"] for model in listed} <= {"digits"}
    stub = service_pb2_grpc.GRPCInferenceServiceStub
    with grpc.insecure_channel(invariants.gateway.grpc_address) as channel, invariants.case() as case:
        for name in ("identity", "does-not-exist"):
            with pytest.raises(grpc.RpcError) as refused:
                stub(channel).ModelMetadata(
                    pb.ModelMetadataRequest(name=name),
                    metadata=(("authorization", client.headers["authorization"]),),
                    timeout=20,
                )
            case.grpc_refused(refused.value, grpc.StatusCode.PERMISSION_DENIED)


def test_10_an_inference_key_on_the_admin_api_whatever_the_method(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client
) -> None:
    client = near(new_key(operator)["key"])
    with invariants.case() as case:
        for method, path in itertools.product(METHODS, ADMIN_PATHS):
            answer = client.request(method, path, content=b"{}", headers={"content-type": "application/json"})
            assert answer.status_code == 403, (method, path, answer.status_code)
            if method != "HEAD":
                case.refused(answer, 403, "admin")
        for path in ("/v2/repository/index", "/v2/repository/models/identity/unload"):
            case.refused(client.post(path, json={}), 404, "oip")


def test_11_another_tenants_things_do_not_exist(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client
) -> None:
    victim = new_key(operator, "beta-web")
    attacker = near(new_key(operator, "alpha-web", "keys:admin", "infer", "usage:read")["key"])
    path = f"/admin/keys/{victim['key_id']}"
    with invariants.case() as case:
        missing = case.refused(attacker.get("/admin/keys/000000000000"), 404, "admin").json()["detail"]
        for answer in (
            attacker.get(path), attacker.patch(path, json={"label": "mine"}), attacker.delete(path),
            attacker.post(f"{path}/rotate", json={}), attacker.post(f"{path}/revoke"),
        ):  # fmt: skip
            assert case.refused(answer, 404, "admin").json()["detail"] == missing
        for answer in (
            attacker.put(f"/admin/limits/key/{victim['key_id']}", json={"concurrency": 1}),
            attacker.put("/admin/limits/project/beta-web", json={"concurrency": 1}),
            attacker.put("/admin/budgets/project/beta-web/day", json={"limit_usd": "0"}),
            attacker.post("/admin/keys", json={"project": "beta-web", "scopes": ["infer"]}),
        ):
            case.refused(answer, 404, "admin")
        assert attacker.get("/admin/keys", params={"project": "beta-web"}).json()["keys"] == []
        shown = attacker.get("/admin/usage", params={"group_by": "project"}).json()["usage"]
        assert {row["project"] for row in shown} <= {"alpha-web"}
        records = attacker.get("/admin/usage/records").json()["usage"]
        assert {record["project"] for record in records} <= {"alpha-web"}
    assert ask(near(victim["key"]), *PLACES[0][:2]).status_code == 200
    operator.post(f"{path}/revoke")


def test_12_nobody_raises_himself(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client
) -> None:
    made = new_key(operator, "alpha-web", "infer", "usage:read")
    owner, admin = near(made["key"]), near(new_key(operator, "alpha-web", "keys:admin")["key"])
    before = operator.get(f"/admin/keys/{made['key_id']}").json()
    fields = (
        {"budget": 10**6}, {"role": "admin"}, {"scopes": ["keys:admin"]}, {"temp_budget_increase": 100},
        {"organisation": "tidegate"}, {"project": "operations"}, {"created_at": "2020-01-01T00:00:00Z"},
        {"scopes": ["audit:read"]}, {"scopes": ["models:admin"]}, {"key_id": "x"}, {"test": True},
        {"tier": "unlimited"},
    )  # fmt: skip
    with invariants.case() as case:
        for body in fields:
            case.refused(owner.patch(f"/admin/keys/{made['key_id']}", json=body), 403, "admin")
            if body != {"scopes": ["keys:admin"]}:  # an administrator may, within the own organisation
                case.refused(admin.patch(f"/admin/keys/{made['key_id']}", json=body), {403, 422}, "admin")
            case.refused(owner.post("/admin/keys", json={"project": "alpha-web"} | body), 403, "admin")
        for body in (
            {"role": "admin"}, {"scopes": ["models:admin"]}, {"budget": 1}, {"test": True}, {"tier": "unlimited"},
        ):  # fmt: skip
            case.refused(admin.post("/admin/keys", json={"project": "alpha-web"} | body), {403, 422}, "admin")
        case.refused(admin.put("/admin/tiers/default", json={"concurrency": 10**6}), 403, "admin")
        case.refused(admin.put("/admin/budgets/organisation/alpha/month", json={"limit_usd": "9"}), 403, "admin")
    after = operator.get(f"/admin/keys/{made['key_id']}").json()
    assert {**before, "last_used_at": None} == {**after, "last_used_at": None}


def test_13_forged_headers_are_nothing(
    invariants: Invariants, near: Callable[..., httpx.Client], operator: httpx.Client
) -> None:
    bound = new_key(operator, addresses=["10.9.8.0/24"])["key"]
    forged = {
        "x-forwarded-for": "10.9.8.7", "x-real-ip": "10.9.8.7", "forwarded": "for=10.9.8.7",
        "true-client-ip": "10.9.8.7",
        "x-user": "admin", "x-tenant": "beta", "x-tidegate-project": "beta-web", "x-tidegate-scopes": "keys:admin",
        "triton-grpc-protocol": "infer", "x-original-url": "/admin/keys", "x-rewrite-url": "/admin/keys",
        "x-http-method-override": "DELETE",
    }  # fmt: skip
    with invariants.case(usage={"completed": len(forged)}) as case:
        client = near(bound)
        case.refused(ask(client, *PLACES[0][:2]), 403, "oip")
        for name, value in forged.items():
            case.refused(ask(client, *PLACES[0][:2], headers={name: value}), 403, "oip")
            case.refused(ask(near(), *PLACES[0][:2], headers={name: value}), 401, "oip")
            answer = ask(near(invariants.gateway.key), *PLACES[0][:2], headers={name: value})
            assert case.see(answer).status_code == 200
            case.refused(near(invariants.gateway.key).get("/admin/keys", headers={name: value}), 403, "admin")
    # Brute force is counted by the connection's address, whatever the request says.
    with invariants.case() as case:
        client = near()
        statuses = [
            ask(
                client, *PLACES[0][:2], headers={"x-forwarded-for": f"10.0.0.{number}"} | bearer(unknown_key())
            ).status_code
            for number in range(60)
        ]
        assert statuses[0] == 401
        assert 429 in statuses


@pytest.mark.parametrize(
    "target",
    ["//v1/../admin/keys", "/v1/../admin/keys", "/v1/%2e%2e/admin/keys", "/%2e%2e/admin/keys", "/v1/..;/admin/keys",
     "/admin;/keys", "/admin/keys;x=1", "/%61dmin/keys", "/admin%2fkeys", "/admin/%6beys", "/v1/%252e%252e/admin/keys",
     "/ADMIN/keys", "//admin/keys", "/./admin/keys", "/admin//keys", "/healthz/live/../../admin/keys",
     "/healthz/live/%2e%2e/%2e%2e/admin/keys", "\\admin\\keys", "/docs/../admin/keys", "/admin/keys%00",
     "/admin/keys/."],
)  # fmt: skip
def test_14_odd_targets_never_get_past(invariants: Invariants, target: str) -> None:
    key = invariants.gateway.key
    with invariants.case() as case:
        for headers in ({}, bearer(key)):
            for answer in talk(invariants.gateway.url, request("GET", target, headers)):
                assert case.see(answer).status_code in {400, 401, 403, 404, 405}, answer.text
                assert '"keys"' not in answer.text


def test_14_hosts_and_absolute_targets_change_nothing(invariants: Invariants) -> None:
    with invariants.case() as case:
        for target, host in (
            ("/admin/keys", "evil.example"), ("http://evil.example/admin/keys", "evil.example"),
            ("http://127.0.0.1/admin/keys", "admin"), ("/admin/keys", "127.0.0.1:8001"), ("/admin/keys", ""),
        ):  # fmt: skip
            for headers in ({}, bearer(invariants.gateway.key)):
                for answer in talk(invariants.gateway.url, request("GET", target, {"host": host} | headers)):
                    assert case.see(answer).status_code in {400, 401, 403, 404}, (target, host, answer.text)
                    assert "evil" not in answer.text
