"""Hostile payloads: what is not JSON, or is more of it than anybody needs (rows 35 and 36)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.live.hostile.invariants import Invariants
from tests.live.hostile.payload import ENDPOINTS, Sender, nested, sender

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def send(invariants: Invariants) -> Iterator[Sender]:
    with sender(invariants.gateway) as opened:
        yield opened


def truncations(body: bytes) -> list[bytes]:
    return [body[:length] for length in sorted({1, 2, len(body) // 2, len(body) - 1})]


NOT_JSON = (
    b"", b" ", b"{", b"}", b"[", b'"', b"nul", b"NaN", b"Infinity", b"-Infinity", b"+1", b"01", b"1.", b".5", b"1e",
    b"1e999", b"-1e999", b"'a'", b"{'inputs': 1}", b'{"inputs" 1}', b'{"inputs": 1,}', b'{"inputs": [1,]}',
    b"{inputs: 1}", b'{"inputs": /* c */ 1}', b'{"inputs": "a\nb"}', b'{"inputs": "\x00"}', b'{"inputs": "\\x41"}',
    b'{"inputs": "\\ud800"}', b'{"inputs": "\xff"}', b'{"inputs": "\xed\xa0\x80"}', b'{"inputs": "\xc0\xaf"}',
    b'\xef\xbb\xbf{"inputs": "a"}', '{"inputs": "a"}'.encode("utf-16"), '{"inputs": "a"}'.encode("utf-32-le"),
    b'{"inputs": NaN}', b'{"inputs": Infinity}', b'{"inputs": [-Infinity]}', b'{"inputs": nan}', b"\x00",
    b"\x1f\x8b\x08", b'{"inputs": "a"} x', b'{"inputs": "a"}{}', b'{"inputs": "a"}\x00', b"inputs=a",
)  # fmt: skip
NOT_AN_OBJECT = (b"null", b"true", b"1", b"-0", b"1e5", b'"text"', b"[]", b"[1, 2]", b'[{"inputs": "a"}]', b"[[]]")


class TestJson:
    """Rows 35 and 36, at every route that takes JSON."""

    def test_what_is_not_json(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for endpoint in ENDPOINTS:
                good = json.dumps(endpoint.good).encode()
                for body in (*NOT_JSON, *truncations(good), good + b"]", good + good, good[:-1] + b",}"):
                    with subtests.test(path=endpoint.path, body=body[:40]):
                        case.refused(send.post(endpoint.path, body), 400, endpoint.dialect)
                for body in NOT_AN_OBJECT:
                    with subtests.test(path=endpoint.path, body=body):
                        case.refused(send.post(endpoint.path, body), {400, 422}, endpoint.dialect)

    def test_members_named_twice(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for endpoint in ENDPOINTS:
                good = json.dumps(endpoint.good).encode()
                name = next(iter(endpoint.good)).encode()
                spelled = b'"\\u%04x%s"' % (name[0], name[1:])  # the same name in another spelling
                for twice in (
                    b'"%s": 1, ' % name,
                    b"%s: 1, " % spelled,
                    b'"x": 1, "x": 1, ',
                    b'"x": {"y": 1, "y": 1}, ',
                ):
                    with subtests.test(path=endpoint.path, twice=twice):
                        case.refused(send.post(endpoint.path, b"{" + twice + good[1:]), 400, endpoint.dialect)

    @pytest.mark.parametrize("kind", ["list", "object"])
    def test_deep_nesting(self, invariants: Invariants, send: Sender, kind: str, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for endpoint in ENDPOINTS:
                good = json.dumps(endpoint.good).encode()
                first = next(iter(endpoint.good)).encode()
                for levels in (101, 1_000, 250_000):
                    deep = nested(levels, kind)
                    for body in (deep, b'{"%s":%s}' % (first, deep), good[:-1] + b',"x":' + deep + b"}"):
                        with subtests.test(path=endpoint.path, levels=levels, body=body[:20]):
                            case.refused(send.post(endpoint.path, body), 400, endpoint.dialect)
                with subtests.test(path=endpoint.path):
                    case.refused(send.post(endpoint.path, b"[" * 250_000), 400, endpoint.dialect)
                    case.refused(send.post(endpoint.path, nested(99, kind)), {400, 422}, endpoint.dialect)
