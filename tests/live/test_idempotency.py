"""Idempotency keys through the clients of the field, on the stack that a user starts."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

pytestmark = pytest.mark.live


def usage(stack: Any, key: str) -> list[tuple[str, str]]:
    """Dialect and state of every usage record with ``key``."""
    connection = sqlite3.connect(f"file:{stack.data_dir}/tidegate.db?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(
            "SELECT dialect, state FROM usage_records WHERE idempotency_key = ?", (key,)
        ).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("dialect", "path", "content"),
    [
        ("huggingface", "/hf/models/sentiment", {"inputs": "I love it."}),
        ("openai", "/v1/embeddings", {"model": "embeddings", "input": "hello"}),
        ("tei", "/tei/embeddings/embed", {"inputs": "hello"}),
        ("kserve_http", "/v2/models/identity/generate", {"INPUT": [0.5] * 64}),
    ],
)
def test_every_dialect_answers_again(
    stack: Any, client: httpx.Client, poll: Callable[..., None], dialect: str, path: str, content: Any
) -> None:
    key = {"idempotency-key": f"once-{dialect}"}
    first = client.post(path, json=content, headers=key)
    again = client.post(path, json=content, headers=key)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert client.post(path, json=content | {"parameters": {}}, headers=key).status_code == 422
    poll(lambda: usage(stack, f"once-{dialect}") == [(dialect, "completed")], 30, "the usage record")


def test_openai_sends_a_key_of_its_own(stack: Any) -> None:
    with openai.OpenAI(base_url=f"{stack.gateway_url}/v1", api_key=stack.key) as client:
        ask = client.embeddings.with_raw_response.create
        key = {"Idempotency-Key": "openai-order-7"}
        first = ask(model="embeddings", input="hello", extra_headers=key)
        again = ask(model="embeddings", input="hello", extra_headers=key)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.parse().data[0].embedding == first.parse().data[0].embedding
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            ask(model="embeddings", input="goodbye", extra_headers=key)
        assert caught.value.code == "idempotency_key_reused"


def test_the_description_names_the_header_where_it_is_honoured(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    def named(path: str, method: str = "post") -> bool:
        return "Idempotency-Key" in {entry["name"] for entry in paths[path][method].get("parameters", ())}

    for path in ("/v2/models/{model}/infer", "/v1/embeddings", "/hf/models/{model}", "/tei/{model}/embed"):
        assert named(path)
        assert "409" in paths[path]["post"]["responses"]
    for path in ("/v2/repository/index", "/v2/models/{model}/generate_stream"):
        assert not named(path)
    assert not named("/v1/models", "get")


def test_metrics_say_what_became_of_keys(stack: Any, client: httpx.Client) -> None:
    for _ in range(2):
        client.post("/v2/models/identity/generate", json={"INPUT": [1.0] * 64}, headers={"idempotency-key": "metric"})
    text = httpx.get(stack.metrics_url).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tidegate_idempotency"))
    assert float(values['tidegate_idempotency_total{outcome="replayed"}']) >= 1
    assert float(values["tidegate_idempotency_stored_bytes"]) > 0
