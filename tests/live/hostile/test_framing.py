"""HTTP framing (cases 19 to 24 and 27, and their neighbours) on the running stack, over raw sockets."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.live.hostile.invariants import GOOD, Invariants
from tests.live.hostile.wire import Answer, Connection, request, talk

pytestmark = pytest.mark.live

INFER = "/v2/models/identity/infer"
LIMIT = 64 * 2**20
BODY = json.dumps(GOOD).encode()
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.fixture
def post(invariants: Invariants) -> Callable[..., bytes]:
    """An authenticated POST with the header lines that are given as they are, and then anything."""

    def build(*lines: str, rest: bytes = b"", path: str = INFER, version: str = "1.1") -> bytes:
        head = [f"POST {path} HTTP/{version}", "Host: gateway", f"Authorization: Bearer {invariants.gateway.key}"]
        return "\r\n".join([*head, *lines]).encode("latin-1") + b"\r\n\r\n" + rest

    return build


AMBIGUOUS = {
    "length and coding": ("Content-Length: 5", "Transfer-Encoding: chunked"),
    "coding and length": ("Transfer-Encoding: chunked", "Content-Length: 5"),
    "two lengths": ("Content-Length: 5", "Content-Length: 6"),
    "two equal lengths": ("Content-Length: 5", "Content-Length: 5"),
    "a list of lengths": ("Content-Length: 5, 5",),
    "plus": ("Content-Length: +5",),
    "space inside": ("Content-Length: 5 5",),
    "space before the colon": ("Content-Length : 5",),
    "hexadecimal": ("Content-Length: 0x5",),
    "negative": ("Content-Length: -1",),
    "a word": ("Content-Length: five",),
    "empty": ("Content-Length:",),
    "over 2^63": ("Content-Length: 9223372036854775808",),
    "over 2^64": ("Content-Length: 18446744073709551621",),
    "obs-fold": ("X-Folded: a\r\n b", "Content-Length: 5"),
    "another coding": ("Transfer-Encoding: xchunked",),
    "a coding before": ("Transfer-Encoding: gzip, chunked",),
    "a coding after": ("Transfer-Encoding: chunked, identity",),
    "identity": ("Transfer-Encoding: identity",),
    "coding twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "vertical tab": ("Transfer-Encoding: \x0bchunked",),
    "NUL": ("X-Nul: a\x00b", "Content-Length: 5"),
    "bare CR": ("X-Cr: a\rTransfer-Encoding: chunked", "Content-Length: 5"),
    "no colon": ("Nothing", "Content-Length: 5"),
    "two hosts": ("Host: other", "Content-Length: 5"),
}


@pytest.mark.parametrize("lines", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_19_20_ambiguous_framing_is_400_and_closes(
    invariants: Invariants, post: Callable[..., bytes], lines: tuple[str, ...]
) -> None:
    with invariants.case() as case:
        answers = talk(invariants.gateway.url, post(*lines, rest=b"0\r\n\r\n" + SMUGGLED))
        assert len(answers) == 1  # what was smuggled was not executed
        case.refused(answers[0], 400, "oip")
        assert answers[0].headers["connection"] == "close"


CHUNKS = {
    "bare LF in an extension": b"5;a=b\nhello\r\n0\r\n\r\n",
    "bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "signed": b"+5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\nhello\r\n0\r\n\r\n",
    "over 2^64": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "longer than its size": b"5\r\nhello, world\r\n0\r\n\r\n",
    "framing in a trailer": b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
def test_19_bad_chunks_are_400_and_close(invariants: Invariants, post: Callable[..., bytes], chunks: bytes) -> None:
    with invariants.case() as case:
        answers = talk(invariants.gateway.url, post("Transfer-Encoding: chunked", rest=chunks + SMUGGLED))
        assert len(answers) == 1
        case.refused(answers[0], 400, "oip")
        assert answers[0].headers["connection"] == "close"


def test_http_1_0_with_chunks_and_other_versions_are_400(invariants: Invariants, post: Callable[..., bytes]) -> None:
    chunked = post("Transfer-Encoding: chunked", rest=b"0\r\n\r\n" + SMUGGLED, version="1.0")
    with invariants.case() as case:
        for sent in (
            chunked,
            post(version="1.2"),
            post(version="3.0"),
            b"GET /v2\r\n\r\n",
            b"\x16\x03\x01\x00\xc8" * 9,
        ):
            (answer,) = talk(invariants.gateway.url, sent)
            case.refused(answer, 400, "plain" if sent[:1] == b"\x16" else "oip")
        (answer,) = talk(invariants.gateway.url, request("GET", "/v2/health/live", {"host": ""}))
        case.refused(answer, 400, "oip")  # HTTP/1.1 without a Host


@pytest.mark.parametrize(("path", "dialect"), [
    (INFER, "oip"), ("/v1/embeddings", "openai"), ("/hf/models/sentiment", "hf"), ("/tei/embeddings/embed", "tei"),
    ("/admin/keys", "admin"), ("/healthz/live", "control"), ("/elsewhere", "plain"),
])  # fmt: skip
def test_what_the_transport_refuses_has_the_body_of_its_dialect(
    invariants: Invariants, post: Callable[..., bytes], path: str, dialect: str
) -> None:
    with invariants.case() as case:
        for lines, status in ((("Content-Length: -1",), 400), (("X-Big: " + "a" * 100_000,), 431)):
            (answer,) = talk(invariants.gateway.url, post("X-Request-Id: mine-1", *lines, path=path))
            case.refused(answer, status, dialect)
            if dialect != "admin":
                assert answer.headers["x-request-id"] == "mine-1"


@pytest.mark.slow
def test_21_65537_one_byte_chunks_are_413(invariants: Invariants, post: Callable[..., bytes]) -> None:
    """A hundred times, and no more than a MiB stays: Triton's own bound. That holds once as much waits for the garbage
    collector as ever will, which looks rarely.
    """
    flood = post("Transfer-Encoding: chunked", rest=b"1\r\na\r\n" * 65_537 + b"0\r\n\r\n")
    grown = []
    for _ in range(8):
        before = invariants.metrics()["process_resident_memory_bytes"]
        with invariants.case() as case:
            for _ in range(100):
                (answer,) = talk(invariants.gateway.url, flood)
                case.refused(answer, 413, "oip")
        grown.append((invariants.metrics()["process_resident_memory_bytes"] - before) / 2**20)
        if grown[-1] <= 1:
            return
    pytest.fail(f"memory grew by {grown} MiB")


def test_21_65536_chunks_are_a_body(invariants: Invariants, post: Callable[..., bytes]) -> None:
    padded = BODY + b" " * (65_536 - len(BODY))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded)
    with invariants.case(usage={"completed": 1}) as case:
        (answer,) = talk(
            invariants.gateway.url, post("Transfer-Encoding: chunked", "Connection: close", rest=chunks + b"0\r\n\r\n")
        )
        assert case.see(answer).status_code == 200


def test_chunk_extensions_without_end_are_413(invariants: Invariants, post: Callable[..., bytes]) -> None:
    with invariants.case() as case:
        flood = b"1;" + b"x" * 3 * 2**20 + b"\r\na\r\n0\r\n\r\n"
        (answer,) = talk(invariants.gateway.url, post("Transfer-Encoding: chunked", rest=flood))
        case.refused(answer, 413, "oip")


def test_22_a_declared_body_over_the_limit_is_413_unread(invariants: Invariants, post: Callable[..., bytes]) -> None:
    with invariants.case() as case, Connection(invariants.gateway.url) as connection:
        connection.send(post(f"Content-Length: {LIMIT + 1}"))  # and not a byte of the body
        answer = connection.read()
        case.refused(answer, 413, "oip")
        assert answer is not None
        assert answer.headers["connection"] == "close"
        assert connection.is_closed()
    with invariants.case() as case, Connection(invariants.gateway.url) as connection:
        connection.send(post(f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"))
        case.refused(connection.read(), 413, "oip")  # never "continue"


def test_22_clients_that_send_it_all_read_the_413(invariants: Invariants) -> None:
    """The connection is not reset under a client that is still sending: it reads why."""
    body = b" " * (LIMIT + 2**20)
    with invariants.case() as case:
        answer = httpx.post(
            invariants.gateway.url + INFER, content=body, headers=invariants.gateway.headers, timeout=60
        )
        case.refused(answer, 413, "oip")


def test_23_a_chunked_body_over_the_limit_is_413_and_closes(invariants: Invariants, post: Callable[..., bytes]) -> None:
    block = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    sent = 0
    with invariants.case(growth_mib=160) as case, Connection(invariants.gateway.url) as connection:
        connection.send(post("Transfer-Encoding: chunked"))
        while sent <= 80:  # MiB, of a body that never ends
            connection.send(block)
            sent += 1
        case.refused(connection.read(), 413, "oip")
        assert connection.is_closed()


def bombs() -> dict[str, tuple[str, bytes]]:
    zeros = b" " * (LIMIT + 1)
    raw = zlib.compressobj(1, zlib.DEFLATED, -15)
    return {
        "gzip": ("gzip", gzip.compress(zeros, 1)),
        "x-gzip": ("x-gzip", gzip.compress(zeros, 1)),
        "deflate": ("deflate", zlib.compress(zeros, 1)),
        "raw deflate": ("deflate", raw.compress(zeros) + raw.flush()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("at_once", "growth_mib"), [(1, 32), (8, 64)])
def test_24_compressed_bombs_are_413(
    invariants: Invariants, post: Callable[..., bytes], at_once: int, growth_mib: int
) -> None:
    """A hundred of them, each inflating over the limit: less than 32 MiB stays, which is Triton's bound.

    Of eight at a time, in as many threads, less stays than one of them would take.
    """
    made = [*bombs().values()]

    def send(made: tuple[str, bytes]) -> Answer:
        coding, bomb = made
        assert len(bomb) < LIMIT / 100
        lines = (f"Content-Encoding: {coding}", f"Content-Length: {len(bomb)}", "Connection: close")
        (answer,) = talk(invariants.gateway.url, post(*lines, rest=bomb))
        return answer

    with ThreadPoolExecutor(at_once) as executor:
        list(executor.map(send, made * 2))  # the allocator's high-water mark is not a leak
        with invariants.case(growth_mib=growth_mib) as case:
            for answer in executor.map(send, made * 25):
                case.refused(answer, 413, "oip")


def test_24_other_codings_are_415_and_broken_ones_400(invariants: Invariants, post: Callable[..., bytes]) -> None:
    packed = gzip.compress(BODY)
    cases = [
        ("br", BODY, 415), ("zstd", BODY, 415), ("compress", BODY, 415), ("gzip, gzip", gzip.compress(packed), 415),
        ("gzip", BODY, 400), ("deflate", BODY, 400), ("gzip", packed[:-9], 400), ("gzip", packed + b"x", 400),
        ("gzip", packed[:-1] + b"\xff", 400), ("gzip", b"", 400),
    ]  # fmt: skip
    with invariants.case() as case:
        for coding, body, status in cases:
            lines = (f"Content-Encoding: {coding}", f"Content-Length: {len(body)}", "Connection: close")
            (answer,) = talk(invariants.gateway.url, post(*lines, rest=body))
            case.refused(answer, status, "oip")


@pytest.mark.parametrize("head", [
    b"X-Big: " + b"a" * 100_000, b"X: y\r\n" * 1000, b"X" * 100_000 + b": y", b"Cookie: " + b"a=b; " * 10_000,
], ids=["one of 100 KB", "1000", "a name of 100 KB", "cookies"])  # fmt: skip
def test_27_headers_that_are_too_large_are_431(invariants: Invariants, head: bytes) -> None:
    with invariants.case(growth_mib=8) as case:
        for _ in range(5):
            (answer,) = talk(invariants.gateway.url, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
            case.refused(answer, 431, "openai")


def test_27_targets_that_are_too_long(invariants: Invariants) -> None:
    with invariants.case() as case:
        (answer,) = talk(invariants.gateway.url, request("GET", "/v2/" + "a" * 5000))
        case.refused(answer, 400, "oip")
        (answer,) = talk(invariants.gateway.url, request("GET", "/v2/" + "a" * 100_000))
        case.refused(answer, 431, "oip")
        (answer,) = talk(invariants.gateway.url, b"\r\n" * 50_000)
        case.refused(answer, 431, "plain")


def test_targets_of_other_forms_never_pass_the_key(invariants: Invariants) -> None:
    targets = {
        "http://evil/v2": 401, "//evil/v2": 404, "/v2/../admin/keys": 404, "/v2/%2e%2e/admin/keys": 404,
        "/v2;x=1/models/identity": 404, "/v2%2fmodels": 404, "/%252e%252e/admin": 404, "*": 404,
        "/v2/models/\u00e9": 400, "/v2/models/%ff": 400,
    }  # fmt: skip
    with invariants.case() as case:
        for target, status in targets.items():
            (answer,) = talk(invariants.gateway.url, request("GET", target))
            assert case.see(answer).status_code == status, target


def test_a_bad_request_behind_a_good_one_does_not_take_its_answer(
    invariants: Invariants, post: Callable[..., bytes]
) -> None:
    with invariants.case(usage={"completed": 1}) as case:
        good = post(f"Content-Length: {len(BODY)}", rest=BODY)
        answers = talk(invariants.gateway.url, good + b"GARBAGE\r\n\r\n")
        assert case.see(answers[0]).status_code == 200
        assert answers[0].json()["outputs"][0]["data"] == GOOD["inputs"][0]["data"]
        case.refused(answers[1], 400, "plain")
    with invariants.case(usage={"completed": 1}) as case:
        answers = talk(invariants.gateway.url, good + post("Transfer-Encoding: chunked", rest=b"zz\r\n"))
        assert [case.see(answer).status_code for answer in answers] == [200, 400]


def test_pipelined_requests_are_answered_in_order(invariants: Invariants, post: Callable[..., bytes]) -> None:
    good = post(f"Content-Length: {len(BODY)}", rest=BODY)
    with invariants.case(usage={"completed": 20}) as case:
        answers = talk(invariants.gateway.url, (good + SMUGGLED) * 20 + request("GET", "/elsewhere"))
        assert [case.see(answer).status_code for answer in answers] == [200, 200] * 20 + [404]
        assert [bool(answer.content) for answer in answers] == [True, False] * 20 + [True]


def test_a_body_in_any_pieces_is_one_body(invariants: Invariants, post: Callable[..., bytes]) -> None:
    whole = post(f"Content-Length: {len(BODY)}", "Connection: close", rest=BODY)
    with invariants.case(usage={"completed": 1}) as case:
        (answer,) = talk(invariants.gateway.url, *(whole[at : at + 7] for at in range(0, len(whole), 7)))
        assert case.see(answer).status_code == 200
