"""A bomb is refused without being held; everything else comes out as zlib alone makes it."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest

from gateway.inflating import inflate

LIMIT = 2**18


def text(size: int) -> bytes:
    """Like JSON: compressed a few times."""
    numbers = random.Random(7)
    return b"".join(b"%.6f," % numbers.random() for _ in range(size // 9 + 1))[:size]


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def blanks(size: int) -> bytes:
    return b" " * size


@pytest.mark.parametrize("make", [text, noise, blanks])
@pytest.mark.parametrize("size", [0, 1, 31, 33, 1000, 2**16, 2**16 + 1, LIMIT - 1, LIMIT, LIMIT + 1, 3 * LIMIT])
def test_what_is_within_the_limit_comes_out(make, size):
    plain = make(size)
    stream = zlib.decompressobj()
    body = inflate(stream, zlib.compress(plain, 9), LIMIT)
    if size > LIMIT:
        assert body is None
    else:
        assert body == plain
        assert stream.eof
        assert not stream.unused_data


@pytest.mark.parametrize("extra", range(-3, 4))
def test_the_edge_between_usual_and_more(extra):
    """Streams whose sizes lie about 32 times apart, where one way of counting ends and the other begins."""
    for size in range(4000, 5000, 7):
        packed = zlib.compress(noise(100) + blanks(size + extra))
        stream = zlib.decompressobj()
        assert inflate(stream, packed, LIMIT) == zlib.decompress(packed)
        assert stream.eof


@pytest.mark.parametrize("make", [text, blanks])
def test_what_ends_too_early_or_too_late_is_seen_by_the_caller(make):
    packed = zlib.compress(make(LIMIT))
    early, late = zlib.decompressobj(), zlib.decompressobj()
    assert inflate(early, packed[:-5], LIMIT) is not None
    assert not early.eof
    assert inflate(late, packed + b"more", LIMIT) == make(LIMIT)
    assert late.unused_data == b"more"
    with pytest.raises(zlib.error):
        inflate(zlib.decompressobj(), packed[:-1] + b"\xff", LIMIT)


def test_a_bomb_is_not_held():
    limit = 64 * 2**20
    bomb = zlib.compress(blanks(limit + 1))
    tracemalloc.start()
    try:
        assert inflate(zlib.decompressobj(), bomb, limit) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit / 8
