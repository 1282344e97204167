"""Large bodies: refused before they are decoded where the caller is over its limits, and decoded in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.dialects import huggingface, kserve_http, openai, tei_codec
from gateway.dialects.body import LONG_BODY
from gateway.errors import RateLimited
from tests.gateway.dialects.served import KEY, Served

LONG, SHORT = b" " * LONG_BODY, b" "
PATHS = (
    "/v2/models/embeddings/infer", "/v2/models/embeddings/generate", "/hf/models/sentiment", "/v1/embeddings",
    "/tei/embeddings/embed", "/tei/embeddings/tokenize", "/tei/embeddings/v1/embeddings",
)  # fmt: skip


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx.Client(base_url=served.url, headers=headers) as connection:
        yield connection


@pytest.mark.parametrize("path", PATHS)
def test_limits_come_before_large_bodies(http: httpx.Client, served: Served, path: str) -> None:
    served.turnstile.early_refusal = RateLimited("slow down", retry_after_s=1)
    assert http.post(path, content=b"{" + LONG).status_code == 429  # and not that this is no JSON
    assert http.post(path, content=b"{" + LONG).status_code == 400


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("padding", [SHORT, LONG])
def test_only_large_bodies_go_to_a_thread(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, padding: bytes
) -> None:
    seen: list[str] = []

    def noting(decode: Any) -> Any:
        def decode_here(*arguments: Any, **options: Any) -> Any:
            seen.append(threading.current_thread().name)
            return decode(*arguments, **options)

        return decode_here

    for module, name in (
        (kserve_http, "decode_infer"), (kserve_http, "decode_generate"), (huggingface, "decode_call"),
        (openai, "decode_embeddings"), (tei_codec, "decode_body"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    monkeypatch.setattr("gateway.dialects.tei.decode_embeddings", noting(openai.decode_embeddings))
    http.post(path, content=json.dumps({"inputs": "hello"}).encode() + padding)
    assert seen
    assert all(name.startswith("ThreadPoolExecutor") for name in seen) == (padding is LONG), seen


def test_large_bodies_are_answered_like_small_ones(http: httpx.Client) -> None:
    for path, body in (
        ("/hf/models/sentiment", {"inputs": "hello"}),
        ("/v1/embeddings", {"model": "embeddings", "input": "hello"}),
        ("/tei/embeddings/tokenize", {"inputs": "hello"}),
    ):
        answers = [http.post(path, content=json.dumps(body).encode() + padding) for padding in (SHORT, LONG)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].content == answers[1].content
