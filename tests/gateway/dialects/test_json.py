"""Strict JSON: what is accepted, what is not, and that the cheap check agrees with an exact one."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import msgspec
import pytest

from gateway.dialects.json import MAX_DEPTH, MAX_PARTS, MAX_VALUES, decode, decode_json, encode
from gateway.errors import Invalid, Malformed, TooLarge


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'"a"',
        b"0",
        b"null",
        b' {"a" : [1, 2.5, "x"] } ',
        b'{"a":{"a":{"a":1}}}',
        b'[{"a":1},{"a":2}]',
        b'{"text":":)"}',
        b'{"a\\":":1}',
        b'{"say":"\\"a\\": 1, \\"a\\": 2"}',
        b'{"a":"[[[[","b":"}}}}"}',
        b'{"a" \n: 1}',
        b'[1,{"a":1}]',
        b'{"a":[0,{"b":[{"c":1}]}]}',
        '{"é":"…"}'.encode(),
        b'{"":0}',
        b"[1e308]",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
        b'["' + b"[" * 500 + b'"]',
        b"[" + b",".join([b"[]"] * 500) + b"]",
        b"[0," + b",".join([b"[]"] * 500) + b"]",
    ],
)
def test_accepted(body: bytes) -> None:
    assert decode(body) == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{a:1}",
        b"'a'",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"01",
        b"1.",
        b"+1",
        b'{"a":1} x',
        b"{}{}",
        b"// c\n{}",
        b'"\x01"',
        b'"a\nb"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\\x"',
        b"\xef\xbb\xbf{}",
        b"tru",
        b"[1e999]",
        b"1" * 6_000,
        '{"a":1}'.encode("utf-16"),
        b"\x00",
        b'{"a":1}\x00',
    ],
)
def test_not_json(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"a" :1,"a"\t:2}',
        b'{"x":{"a":1,"b":{"c":1,"c":2}}}',
        b'[1,{"a":1,"a":1}]',
        b'[[[{"a":1,"a":1}]]]',
        b'{"a":":)","a":1}',
        b'{"a":"\\":\\":","a":1}',
        b'{"a":{"b":1},"a":{"c":1,"d":2}}',
        b'{"a":[1,2],"a":1e5,"n":12345678901234567890}',
        b'{"":0,"":0}',
    ],
)
def test_a_repeated_name(body: bytes) -> None:
    with pytest.raises(Malformed, match="twice"):
        decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b'["' + b"]" * 500 + b'",' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"]",
        b"[1," + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"]",
        b"[" * 900 + b"]" * 900,
        b"[" * 250_000,
        b'{"a":' * 250_000,
    ],
)
def test_too_deep(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode(body)


@pytest.mark.parametrize("item", [b"[],", b"{},", b'{"a":1},', b'"\\":",', b"[[[]]],"])
def test_too_many_parts(item: bytes) -> None:
    """More lists, objects and members than anybody needs, or texts that look like it; numbers are not counted."""
    parts = sum(map(item.count, (b"[", b"{", b":")))
    with pytest.raises(TooLarge):
        decode(b"[" + (item * (MAX_PARTS // parts + 1))[:-1] + b"]")
    assert len(decode(b"[" + b"1," * (2 * MAX_PARTS) + b"1]")) == 2 * MAX_PARTS + 1
    assert len(decode(b"[" + b"[]," * (MAX_PARTS - 2) + b"[]]")) == MAX_PARTS - 1


@pytest.mark.parametrize("item", [b"1,", b'"",', b'"ab",', b"[1,2,3],", b'",",'])
def test_too_many_values(item: bytes) -> None:
    """Counted before any is made: two bytes make a number."""
    many = -(-MAX_VALUES // item.count(b","))
    body = b"[" + item * many + b"1]"
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decode(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20
    assert decode(b"[" + item * (many - 1) + b"1]")


def test_random_documents_agree_with_the_exact_check() -> None:
    source = random.Random(7)

    def value(depth: int) -> str:
        kind = source.randrange(7 if depth < 4 else 4)
        if kind == 0:
            return json.dumps("".join(source.choice(['"', ":", "\\", "[", "{", "a", " ", "}"]) for _ in range(4)))
        if kind < 4:
            return source.choice(["1", "null", "2.5", "true"])
        if kind == 4:
            return "[" + ",".join(value(depth + 1) for _ in range(source.randrange(4))) + "]"
        members = [
            f"{json.dumps(source.choice('abcdefgh'))}{source.choice(['', ' ', chr(9)])}:{value(depth + 1)}"
            for _ in range(source.randrange(4))
        ]
        return "{" + ",".join(members) + "}"

    def repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        repeated = repeated or len({name for name, _ in pairs}) != len(pairs)
        return dict(pairs)

    outcomes = set()
    for _ in range(5_000):
        body = value(0)
        repeated = False
        expected = json.loads(body, object_pairs_hook=repeats)
        outcomes.add(repeated)
        if repeated:
            with pytest.raises(Malformed):
                decode(body.encode())
        else:
            assert decode(body.encode()) == expected
    assert outcomes == {True, False}


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int
    y: list[Any] = []


def test_a_form() -> None:
    assert decode_json(b'{"x":1,"y":[1,"a"]}', Point) == Point(1, [1, "a"])
    assert decode_json(memoryview(b'{"x":1}'), dict[str, Any]) == {"x": 1}
    for body in (b"{}", b'{"x":"1"}', b'{"x":1.5}', b'{"x":1,"z":1}', b"[1]"):
        with pytest.raises(Invalid):
            decode_json(body, Point)
    with pytest.raises(Malformed):
        decode_json(b'{"x":1,"x":2}', Point)


def test_no_nan_is_written() -> None:
    assert encode([float("nan"), float("inf"), -float("inf"), 1.5]) == b"[null,null,null,1.5]"
