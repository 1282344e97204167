"""Methods, content types, Accept and Upgrade (cases 33 and 29) on the running stack."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.live.hostile.invariants import GOOD, Invariants
from tests.live.hostile.wire import Connection, request, talk

pytestmark = pytest.mark.live

INFER = "/v2/models/identity/infer"
BODY = json.dumps(GOOD).encode()
ROUTES = {
    INFER: ("oip", {"POST"}),
    "/v2/models/identity": ("oip", {"GET", "HEAD"}),
    "/v1/embeddings": ("openai", {"POST"}),
    "/v1/models": ("openai", {"GET", "HEAD"}),
    "/hf/models/sentiment": ("hf", {"POST"}),
    "/tei/embeddings/embed": ("tei", {"POST"}),
    "/healthz/live": ("control", {"GET", "HEAD"}),
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "QUERY", "PURGE")


@pytest.mark.parametrize("path", ROUTES)
def test_33_other_methods_are_405_and_say_which_are_allowed(invariants: Invariants, path: str) -> None:
    dialect, allowed = ROUTES[path]
    with invariants.case() as case:
        for method in METHODS:
            if method in allowed:
                continue
            (answer,) = talk(invariants.gateway.url, request(method, path, invariants.gateway.headers))
            case.refused(answer, 405, dialect)
            if not (dialect == "hf" and method == "GET"):
                assert allowed <= {name.strip() for name in answer.headers["allow"].split(",")}
            assert b"Bearer" not in answer.content  # TRACE echoes nothing


def test_33_connect_is_405_and_opens_nothing(invariants: Invariants) -> None:
    after = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with invariants.case() as case:
        for target in ("127.0.0.1:22", "evil:443", "/v2", "*"):
            answers = talk(invariants.gateway.url, request("CONNECT", target, {"connection": ""}) + after)
            assert len(answers) == 1
            case.refused(answers[0], 405, "oip" if target == "/v2" else "plain")


def test_33_a_method_that_is_none_is_400(invariants: Invariants) -> None:
    with invariants.case() as case:
        for method in ("BREW", "get", "G\u00cbT", "GET\t", "X" * 5000):
            (answer,) = talk(invariants.gateway.url, request(method, "/v1/models"))
            case.refused(answer, 400, "plain")


@pytest.mark.parametrize(("path", "dialect"), [
    (INFER, "oip"), ("/v2/models/identity/generate", "oip"), ("/v1/embeddings", "openai"),
    ("/hf/models/sentiment", "hf"), ("/tei/embeddings/embed", "tei"),
])  # fmt: skip
def test_33_wrong_content_types_are_415(invariants: Invariants, path: str, dialect: str) -> None:
    body: Any = GOOD if "v2" in path else {"model": "embeddings", "input": "a", "inputs": "a"}
    kinds = ("application/xml", "text/html", "multipart/form-data; boundary=x", "application/x-python-pickle", "a", "/")
    with invariants.case() as case, httpx.Client(base_url=invariants.gateway.url) as client:
        for kind in kinds:
            headers = invariants.gateway.headers | {"content-type": kind}
            case.refused(client.post(path, content=json.dumps(body), headers=headers), 415, dialect)


@pytest.mark.parametrize(("path", "dialect"), [
    (INFER, "oip"), ("/v1/embeddings", "openai"), ("/hf/models/sentiment", "hf"), ("/tei/embeddings/embed", "tei"),
])  # fmt: skip
def test_33_an_impossible_accept_is_406(invariants: Invariants, path: str, dialect: str) -> None:
    with invariants.case() as case, httpx.Client(base_url=invariants.gateway.url) as client:
        for accept in ("video/mp4", "application/xml", "text/html", "*/*;q=0", "application/json;q=0.0, text/csv", "x"):
            headers = invariants.gateway.headers | {"accept": accept}
            case.refused(client.post(path, json=GOOD, headers=headers), 406, dialect)


def test_33_a_possible_accept_is_served(invariants: Invariants) -> None:
    kinds = (
        "*/*",
        "application/*",
        "application/json; charset=utf-8",
        "text/html, */*;q=0.1",
        "",
        "application/json;q=0.1",
    )
    with invariants.case(usage={"completed": len(kinds)}) as case, httpx.Client() as client:
        for accept in kinds:
            headers = invariants.gateway.headers | {"accept": accept}
            assert case.see(client.post(invariants.gateway.url + INFER, json=GOOD, headers=headers)).status_code == 200


# --- HTTP/2 is not spoken on the HTTP port

UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQCAAAAAAIAAAAA"}


def test_29_an_http_2_preface_is_400(invariants: Invariants) -> None:
    with invariants.case() as case:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        (answer,) = talk(invariants.gateway.url, preface)
        case.refused(answer, 400, "plain")


@pytest.mark.parametrize("to", ["h2c", "websocket", "TLS/1.3", "nonsense"])
def test_29_an_upgrade_is_ignored(invariants: Invariants, to: str) -> None:
    """Java's HttpClient asks for h2c with its first request, whatever that is."""
    headers = invariants.gateway.headers | UPGRADE | {"upgrade": to}
    whole = request("POST", INFER, headers, BODY)
    head, body = whole[: -len(BODY)], whole[-len(BODY) :]
    chunked = request("POST", INFER, headers | {"transfer-encoding": "chunked"})
    chunks = b"%x\r\n" % 50 + body[:50] + b"\r\n" + b"%x\r\n" % len(body[50:]) + body[50:] + b"\r\n0\r\n\r\n"
    pieces = [(whole,), (head, body), (head + body[:9], body[9:]), (chunked, chunks), (chunked + chunks,)]
    with invariants.case(usage={"completed": 2 * len(pieces)}) as case:
        for parts in pieces:
            with Connection(invariants.gateway.url) as connection:
                for _ in range(2):  # and the connection goes on in HTTP/1.1
                    for part in parts:
                        connection.send(part)
                    answer = connection.read()
                    assert case.see(answer).status_code == 200
                    assert answer is not None
                    assert answer.json()["outputs"][0]["data"] == GOOD["inputs"][0]["data"]


def test_29_the_body_of_an_upgrade_is_not_the_next_request(invariants: Invariants) -> None:
    smuggled = request("GET", "/v2/health/live", {"connection": ""})
    head = request("POST", INFER, invariants.gateway.headers | UPGRADE | {"content-length": str(len(smuggled))})
    with invariants.case() as case:
        for parts in ((head, smuggled), (head + smuggled,), (head, smuggled[:5], smuggled[5:])):
            answers = talk(invariants.gateway.url, *parts, request("GET", "/elsewhere"))
            assert [answer.status_code for answer in answers] == [400, 404]
            case.refused(answers[0], 400, "oip")
