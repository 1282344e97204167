"""Neighbours of the framing cases: bodies that nobody reads, trailers, expectations, coding chains, odd headers."""

from __future__ import annotations

import gzip
import json
import zlib

import httpx
import pytest

from tests.live.hostile.invariants import GOOD, Invariants
from tests.live.hostile.wire import Connection, request, talk

pytestmark = pytest.mark.live

INFER = "/v2/models/identity/infer"
BODY = json.dumps(GOOD).encode()
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
NEXT = request("GET", "/elsewhere")


def chunked(body: bytes, *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    """``body`` in two chunks."""
    half = len(body) // 2
    parts = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in (body[:half], body[half:]))
    return parts + b"0\r\n" + trailers + b"\r\n"


ANSWERED_EARLY = {
    "without a key": ("POST", INFER, {}, 401, "oip"),
    "to no route": ("POST", "/v2/nothing", {"authorization": "KEY"}, 404, "oip"),
    "with another method": ("PUT", INFER, {"authorization": "KEY"}, 405, "oip"),
    "that wants another answer": ("POST", INFER, {"authorization": "KEY", "accept": "video/mp4"}, 406, "oip"),
    "in another coding": ("POST", INFER, {"authorization": "KEY", "content-encoding": "br"}, 415, "oip"),
    "that reads": ("GET", "/v2", {"authorization": "KEY"}, 200, "oip"),
    "that asks for a head": ("GET", "/v2/health/live", {}, 200, "oip"),
    "of the administration": ("GET", "/admin/keys", {}, 401, "admin"),
    "of its own wrong form": ("POST", INFER, {"authorization": "KEY"}, 400, "oip"),
}


@pytest.mark.parametrize("coded", [False, True], ids=["by length", "in chunks"])
@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "dialect"), ANSWERED_EARLY.values(), ids=ANSWERED_EARLY.keys()
)
def test_a_body_that_nobody_reads_is_not_the_next_request(
    invariants: Invariants, method: str, path: str, headers: dict[str, str], status: int, dialect: str, coded: bool
) -> None:
    """What is answered before its body is read (CL.0): the body is a request, and is never executed."""
    framing = {"transfer-encoding": "chunked"} if coded else {"content-length": str(len(SMUGGLED))}
    named = {name: value.replace("KEY", f"Bearer {invariants.gateway.key}") for name, value in headers.items()}
    head = request(method, path, named | framing | {"connection": ""})
    body = chunked(SMUGGLED) if coded else SMUGGLED
    with invariants.case() as case:
        for parts in ((head + body + NEXT,), (head, body, NEXT), (head, body[:9], body[9:] + NEXT)):
            answers = talk(invariants.gateway.url, *parts)
            if len(answers) == 1:  # or the connection is ended, and nothing after the answer is looked at
                assert answers[0].headers["connection"] == "close"
            else:
                assert [answer.status_code for answer in answers] == [status, 404]
            if status == 200:
                assert case.see(answers[0]).status_code == 200
            else:
                case.refused(answers[0], status, dialect)


def test_trailers_are_no_headers(invariants: Invariants) -> None:
    """A proxy checks and strips headers, not trailers: a key, a request id, a length in them say nothing."""
    key = f"Authorization: Bearer {invariants.gateway.key}\r\n".encode()
    trailers = key + b"X-Request-Id: from-the-trailer\r\nHost: other\r\nAccept: video/mp4\r\nContent-Encoding: gzip\r\n"
    for head, status in ({}, 401), (invariants.gateway.headers, 200):
        sent = request("POST", INFER, head | {"transfer-encoding": "chunked"})
        with invariants.case(usage={"completed": 2} if status == 200 else {}) as case:
            for parts in (
                (sent + chunked(BODY, trailers=trailers),),
                (sent, chunked(BODY)[:-2], trailers, b"\r\n"),
            ):
                (answer,) = talk(invariants.gateway.url, *parts)
                assert case.see(answer).status_code == status, answer.text
                assert answer.headers["x-request-id"] != "from-the-trailer"


def test_extensions_of_chunks_are_passed_over(invariants: Invariants) -> None:
    sent = request("POST", INFER, invariants.gateway.headers | {"transfer-encoding": "chunked"})
    extensions = (b";name", b";name=value", b';name="quoted; 5\\""', b";a=1;b=2;c")
    with invariants.case(usage={"completed": len(extensions)}) as case:
        for extension in extensions:
            (answer,) = talk(invariants.gateway.url, sent + chunked(BODY, extension=extension))
            assert case.see(answer).status_code == 200, (extension, answer.text)


def test_who_expects_to_be_told_to_go_on_is_told(invariants: Invariants) -> None:
    """And only where the body is wanted; who sends it without waiting is served all the same."""
    head = request(
        "POST", INFER, invariants.gateway.headers | {"content-length": str(len(BODY)), "expect": "100-continue"}
    )
    with invariants.case(usage={"completed": 2}) as case:
        with Connection(invariants.gateway.url) as connection:
            connection.send(head)
            assert connection.socket.recv(65536).startswith(b"HTTP/1.1 100 ")
            connection.send(BODY)
            assert case.see(connection.read()).status_code == 200
        answers = talk(invariants.gateway.url, head + BODY)
        assert [case.see(answer).status_code for answer in answers] == [200]
    bad = {"content-length": str(len(BODY)), "expect": "100-continue", "authorization": "Bearer tg_live_no"}
    with invariants.case() as case, Connection(invariants.gateway.url) as connection:
        connection.send(request("POST", INFER, bad))
        first = connection.socket.recv(65536)
        assert first.startswith(b"HTTP/1.1 401 ")  # never "continue" to somebody without a key
    with invariants.case(usage={"completed": 1}) as case:  # an expectation that nobody knows
        (answer,) = talk(
            invariants.gateway.url, request("POST", INFER, invariants.gateway.headers | {"expect": "a-miracle"}, BODY)
        )
        assert case.see(answer).status_code == 200


def test_24_chains_of_codings_are_never_unwound(invariants: Invariants) -> None:
    """Bombs in bombs: one coding at most. A file of several gzip members, and codings with options, are refused."""
    bomb = gzip.compress(gzip.compress(b" " * (64 * 2**20), 9), 9)
    packed = gzip.compress(BODY)
    cases: list[tuple[tuple[str, ...], bytes, int]] = [
        (("gzip, gzip",), bomb, 415), (("deflate, gzip",), bomb, 415), (("gzip, identity",), packed, 415),
        (("gzip,",), packed, 415), (("gzip;q=1",), packed, 415), (("*",), packed, 415), (("gzip\t",), packed, 200),
        (("gzip", "gzip"), bomb, 400), (("gzip", "identity"), packed, 400), (("GZIP",), packed, 200),
        (("gzip",), bomb, 400),  # what is inside is no JSON
        (("gzip",), packed + gzip.compress(b" "), 400), (("deflate",), zlib.compress(BODY) + b"\0", 400),
    ]  # fmt: skip
    good = sum(status == 200 for _, _, status in cases)
    with invariants.case(usage={"completed": good}, growth_mib=16) as case:
        for codings, body, status in cases:
            head = request("POST", INFER, invariants.gateway.headers | {"content-length": str(len(body))})
            lines = b"".join(b"Content-Encoding: %s\r\n" % coding.encode() for coding in codings)
            (answer,) = talk(invariants.gateway.url, head[:-2] + lines + b"\r\n" + body)
            if status == 200:
                assert case.see(answer).status_code == 200, answer.text
            else:
                case.refused(answer, status, "oip")


def test_27_as_many_headers_as_are_allowed_and_one_more(invariants: Invariants) -> None:
    with invariants.case() as case:
        for extra, status in ((100 - 3, 404), (100 - 2, 431)):  # Host, Connection, Authorization
            head = request("GET", "/v2/models/nothing", invariants.gateway.headers)
            (answer,) = talk(invariants.gateway.url, head[:-2] + b"X: y\r\n" * extra + b"\r\n")
            case.refused(answer, status, "oip")


ENDLESS = {
    "accept": "text/html;q=0.1," * 1_900, "accept-encoding": "gzip;q=0.5, " * 2_000, "content-type": "a/b;" * 7_000,
    "accept-language": "en-GB;q=0.1," * 2_000, "authorization": "Bearer " + "tg_live_" * 3_500,
    "cookie": "a=b; " * 5_000, "if-none-match": '"a", ' * 5_000, "range": "bytes=" + "0-1," * 7_000,
    "traceparent": "00-" + "a" * 29_000, "x-forwarded-for": "1.2.3.4, " * 3_000, "forwarded": "for=a;" * 4_500,
    "idempotency-key": "k" * 29_000, "content-encoding": "gzip," * 5_000, "te": "trailers;" * 3_000,
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_headers_that_are_long_cost_no_time(invariants: Invariants, name: str) -> None:
    """29 KB of any one header: answered, in processor time that a request may take (lists in it are read once)."""
    headers = invariants.gateway.headers | {name: ENDLESS[name]}
    with invariants.case(usage={"completed": 10} if name not in REFUSED else {}, growth_mib=16) as case:
        before = invariants.metrics()["process_cpu_seconds_total"]
        for _ in range(10):
            (answer,) = talk(invariants.gateway.url, request("POST", INFER, headers, BODY))
            assert case.see(answer).status_code == REFUSED.get(name, 200), answer.text
        assert invariants.metrics()["process_cpu_seconds_total"] - before < 2.0


REFUSED = {"accept": 406, "content-type": 415, "authorization": 401, "idempotency-key": 400, "content-encoding": 415}


def test_headers_that_other_servers_obey_mean_nothing(invariants: Invariants) -> None:
    """Overrides of the method, the path and the caller."""
    headers = {
        "x-http-method-override": "DELETE", "x-method-override": "DELETE", "x-original-url": "/admin/keys",
        "x-rewrite-url": "/admin/keys", "x-forwarded-prefix": "/admin", "x-forwarded-host": "evil", "via": "1.1 evil",
        "x-accel-redirect": "/etc/passwd", "x-sendfile": "/etc/passwd", "x-amzn-trace-id": "Root=1",
        "connection": "close, authorization, x-request-id", "range": "bytes=0-0", "if-match": "*", "depth": "infinity",
    }  # fmt: skip
    with invariants.case(usage={"completed": 1}) as case:
        (answer,) = talk(invariants.gateway.url, request("POST", INFER, invariants.gateway.headers | headers, BODY))
        assert case.see(answer).status_code == 200
        assert answer.json()["outputs"][0]["data"] == GOOD["inputs"][0]["data"]


def test_queries_of_any_kind_are_passed_over_or_refused(invariants: Invariants) -> None:
    queries = ("&" * 29_000, "a=b&" * 7_000, "a=b;" * 7_000, "%" * 20_000, "%ff=%00", "a[]=" + "%5B" * 9_000, "?" * 99)
    with invariants.case() as case, httpx.Client(base_url=invariants.gateway.url) as client:
        for query in queries:
            answer = client.get(f"/v2/models/nothing?{query}", headers=invariants.gateway.headers)
            case.refused(answer, {400, 404}, "oip")
