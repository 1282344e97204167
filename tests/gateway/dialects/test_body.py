"""Bodies: limits, encodings, clients that go away."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest

from gateway.dialects.body import BodyMemory, read_body
from gateway.errors import (
    ClientClosed,
    ClientTimeout,
    GatewayError,
    Malformed,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)

LIMIT = 10_000


def receiver(*messages: dict[str, Any]) -> Any:
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


def whole(body: bytes) -> Any:
    return receiver({"type": "http.request", "body": body, "more_body": False})


def chunks(*parts: bytes) -> Any:
    return receiver(
        *({"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts))
    )


async def read(receive: Any, timeout_s: float = 5.0, **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await read_body(receive, given, LIMIT, timeout_s, BodyMemory(10 * LIMIT).share())


async def test_plain_chunked_and_compressed_bodies_arrive() -> None:
    text = b"tide " * 100
    raw_deflate = zlib.compressobj(wbits=-15)
    assert await read(whole(text)) == text
    assert await read(chunks(text[:7], b"", text[7:])) == text
    assert await read(whole(gzip.compress(text)), content_encoding="gzip") == text
    assert await read(whole(zlib.compress(text)), content_encoding="deflate") == text
    assert await read(whole(raw_deflate.compress(text) + raw_deflate.flush()), content_encoding="Deflate") == text


@pytest.mark.parametrize(
    ("receive", "headers", "error"),
    [
        (whole(b"x" * 10_001), {}, TooLarge),
        (chunks(*[b"x" * 1000] * 11), {}, TooLarge),
        (whole(gzip.compress(b"\0" * 10_001)), {"content_encoding": "gzip"}, TooLarge),
        (whole(b"not gzip"), {"content_encoding": "gzip"}, Malformed),
        (whole(gzip.compress(b"abc")[:-4]), {"content_encoding": "gzip"}, Malformed),
        (whole(gzip.compress(b"abc") + b"tail"), {"content_encoding": "gzip"}, Malformed),
        (whole(b"\x07\x07"), {"content_encoding": "deflate"}, Malformed),
        (whole(b"abc"), {"content_encoding": "br"}, UnsupportedMediaType),
        (receiver({"type": "http.disconnect"}), {}, ClientClosed),
        (
            receiver({"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}),
            {},
            ClientClosed,
        ),
    ],
)
async def test_bad_bodies_are_told_apart(receive: Any, headers: dict[str, str], error: type[GatewayError]) -> None:
    with pytest.raises(error):
        await read(receive, **headers)


async def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    with pytest.raises(TooLarge):
        await read(receiver(), content_length="10001")


async def test_a_body_that_does_not_come_is_408() -> None:
    with pytest.raises(ClientTimeout):
        await read(receiver({"type": "http.request", "body": b"a", "more_body": True}), timeout_s=0.01)


async def test_a_bomb_is_not_inflated_beyond_the_limit() -> None:
    bomb = gzip.compress(b"\0" * 200_000_000, 9)
    with pytest.raises(TooLarge):
        await read(whole(bomb), content_encoding="gzip")


async def test_large_bodies_share_one_memory_and_give_it_back() -> None:
    memory = BodyMemory(2500)
    first, second, third = memory.share(), memory.share(), memory.share()
    assert len(await read_body(chunks(b"x" * 600, b"x" * 600), {}, LIMIT, 5.0, first)) == 1200
    assert len(await read_body(chunks(b"x" * 600, b"x" * 600), {}, LIMIT, 5.0, second)) == 1200
    with pytest.raises(Unavailable):
        await read_body(chunks(b"x" * 600, b"x" * 600), {}, LIMIT, 5.0, third)
    third.release()
    assert memory.used == 2400
    assert len(await read_body(whole(b"x" * 5000), {}, LIMIT, 5.0, third)) == 5000  # in one piece: not counted
    packed = gzip.compress(b"x" * 5000)
    with pytest.raises(Unavailable):
        await read_body(whole(packed), {"content-encoding": "gzip"}, LIMIT, 5.0, third)
    for share in (first, second, third):
        share.release()
    assert memory.used == 0
