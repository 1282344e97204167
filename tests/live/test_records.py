"""Every answered request leaves a usage record: what came in, what it computed, what it cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import skimage.data

from tests.live.test_tasks import jpeg

pytestmark = pytest.mark.live

SETTLED_S = 60.0
QUESTION = {"question": "Who wrote it?", "context": "The book was written by Ada Lovelace in London."}
PAIR = {"source_sentence": "The sea is calm.", "sentences": ["The ocean is quiet.", "Stocks fell."]}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text-classification": ("/hf/models/sentiment", {"inputs": "A warm and funny film."}),
    "text-classification in Chinese": ("/hf/models/topics-zh", {"inputs": "酒店的房间很干净，服务员态度很好。"}),
    "token-classification": ("/hf/models/entities", {"inputs": "Ada Lovelace lived in London."}),
    "question-answering": ("/hf/models/qa", {"inputs": QUESTION}),
    "translation": ("/hf/models/translate-en-fr", {"inputs": "A dog runs on the beach."}),
    "translation from Chinese": ("/hf/models/translate-zh-en", {"inputs": "我喜欢你。"}),
    "feature-extraction": ("/hf/models/embeddings/pipeline/feature-extraction", {"inputs": "The sea is calm."}),
    "sentence-similarity": ("/hf/models/embeddings/pipeline/sentence-similarity", {"inputs": PAIR}),
    "zero-shot-classification": (
        "/hf/models/embeddings/pipeline/zero-shot-classification",
        {"inputs": "The team won.", "parameters": {"candidate_labels": ["sports", "cooking"]}},
    ),
    "embeddings": ("/v1/embeddings", {"model": "embeddings-int8", "input": ["one sentence", "another"]}),
    "embed": ("/tei/embeddings/embed", {"inputs": ["one sentence", "another"]}),
}


def settled(client: httpx.Client, response: httpx.Response, poll: Callable[..., None]) -> dict[str, Any]:
    """The record of an answered request, once its compute time is measured."""
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = []

    def there() -> bool:
        records = client.get("/admin/usage/records", params={"limit": 1000}).json()["usage"]
        usage_id = response.headers["x-tidegate-usage-id"]
        found[:] = [record for record in records if record["usage_id"] == usage_id and record["settled"]]
        return bool(found)

    poll(there, SETTLED_S, "the settled record")
    (record,) = found
    return record


def check_cost(record: dict[str, Any]) -> None:
    assert record["state"] == "completed"
    assert record["status"] == 200
    assert record["basis"] == "measured"
    assert record["rows"] > 0
    assert record["total_ms"] > 0
    assert record["compute_ms"] > 0
    assert record["cost_usd"] > 0
    assert record["billed_usd"] > 0


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_recorded_with_its_tokens(client: httpx.Client, poll: Callable[..., None], name: str) -> None:
    path, body = TEXTS[name]
    response = client.post(path, json=body)
    record = settled(client, response, poll)
    assert record["tokens"] == int(response.headers["x-tidegate-tokens"]) > 0
    assert record["pixels"] == 0
    check_cost(record)


@pytest.mark.parametrize("model", ["imagenet", "imagenet-torchscript", "digits"])
def test_a_picture_is_recorded_with_its_pixels(client: httpx.Client, poll: Callable[..., None], model: str) -> None:
    picture = skimage.data.chelsea()
    response = client.post(f"/hf/models/{model}", content=jpeg(picture), headers={"Content-Type": "image/jpeg"})
    record = settled(client, response, poll)
    assert record["pixels"] == picture.shape[0] * picture.shape[1]
    assert record["tokens"] == 0
    check_cost(record)


def test_raw_tensors_are_recorded_with_their_rows(client: httpx.Client, poll: Callable[..., None]) -> None:
    tensor = {"name": "INPUT", "shape": [3, 64], "datatype": "FP32", "data": [0.5] * 192}
    record = settled(client, client.post("/v2/models/identity/infer", json={"inputs": [tensor]}), poll)
    assert (record["rows"], record["tokens"], record["pixels"]) == (3, 0, 0)
    check_cost(record)
