"""The four systems of the mission and their neighbours answer sensibly, over plain HTTP with the demo key."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
from PIL import Image

pytestmark = pytest.mark.live


def ask(client: httpx.Client, model: str, **body: Any) -> Any:
    response = client.post(f"/hf/models/{model}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def jpeg(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("model", ["imagenet", "imagenet-torchscript"])
def test_a_photograph_of_a_cat_is_a_cat(client: httpx.Client, model: str) -> None:
    response = client.post(
        f"/hf/models/{model}", content=jpeg(skimage.data.chelsea()), headers={"Content-Type": "image/jpeg"}
    )
    assert response.status_code == 200, response.text
    best = response.json()
    assert any(word in best[0]["label"].lower() for word in ("cat", "tabby")), best
    assert best[0]["score"] > best[1]["score"]


@pytest.mark.parametrize(
    ("text", "label"), [("A wonderful, warm and funny film.", "positive"), ("Dull, ugly and far too long.", "negative")]
)
def test_sentiment(client: httpx.Client, text: str, label: str) -> None:
    ((best, *_),) = ask(client, "sentiment", inputs=text)
    assert best["label"].lower() == label
    assert best["score"] > 0.8


def test_topics_of_chinese_reviews(client: httpx.Client) -> None:
    for text, label in {
        "这本书的内容很好，作者写得非常感人，值得一读。": "books",
        "酒店的房间很干净，服务员态度很好，离火车站也近。": "hotels",
        "苹果很新鲜，又脆又甜，个头也大。": "fruit",
    }.items():
        ((best, *_),) = ask(client, "topics-zh", inputs=text)
        assert best["label"].lower() == label, (text, best)


def test_a_question_is_answered_from_its_context(client: httpx.Client) -> None:
    context = "The Eiffel Tower was built by the company of Gustave Eiffel and was opened in 1889 in Paris."
    answer = ask(client, "qa", inputs={"question": "When was the Eiffel Tower opened?", "context": context})
    assert "1889" in answer["answer"]
    assert context[answer["start"] : answer["end"]] == answer["answer"]


def test_translations(client: httpx.Client) -> None:
    (french,) = ask(client, "translate-en-fr", inputs="A man in a red shirt is riding a bicycle.")
    assert "homme" in french["translation_text"]
    assert "rouge" in french["translation_text"]
    (english,) = ask(client, "translate-zh-en", inputs="我喜欢你。")
    assert "like" in english["translation_text"].lower() or "love" in english["translation_text"].lower()


def test_entities(client: httpx.Client) -> None:
    text = "Angela Merkel met Barack Obama in Berlin."
    found = ask(client, "entities", inputs=text, parameters={"aggregation_strategy": "simple"})
    persons = {entity["word"] for entity in found if entity["entity_group"] == "PER"}
    assert persons & {"Angela Merkel", "Barack Obama"}, found
    for entity in found:
        assert text[entity["start"] : entity["end"]] == entity["word"]


@pytest.mark.parametrize("model", ["embeddings", "embeddings-int8"])
def test_sentences_that_mean_the_same_are_near(client: httpx.Client, model: str) -> None:
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    response = client.post("/v1/embeddings", json={"model": model, "input": texts, "encoding_format": "float"})
    assert response.status_code == 200, response.text
    vectors = np.array([item["embedding"] for item in response.json()["data"]])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    similar = vectors[0] @ vectors[1:].T
    # the figures of the model's own card
    assert np.allclose(similar, [0.6946, 0.9429, 0.2569], atol=0.001 if model == "embeddings" else 0.05)


def test_similarity_and_zero_shot(client: httpx.Client) -> None:
    scores = client.post(
        "/hf/models/embeddings/pipeline/sentence-similarity",
        json={"inputs": {"source_sentence": "The sea is calm.", "sentences": ["The ocean is quiet.", "Stocks fell."]}},
    ).json()
    assert scores[0] > scores[1] + 0.2
    labels = client.post(
        "/hf/models/embeddings/pipeline/zero-shot-classification",
        json={
            "inputs": "The team won the match in extra time.",
            "parameters": {"candidate_labels": ["sports", "cooking", "tax law"]},
        },
    ).json()
    assert labels[0]["label"] == "sports"


def test_a_handwritten_digit(client: httpx.Client) -> None:
    # a seven, drawn here: a bar on top and a slanted stroke, light on dark as the training data is
    image = np.zeros((28, 28), dtype=np.uint8)
    image[6:9, 7:21] = 255
    for row in range(9, 23):
        column = 20 - (row - 9) // 2
        image[row, column - 2 : column + 1] = 255
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    response = client.post("/hf/models/digits", content=buffer.getvalue(), headers={"Content-Type": "image/png"})
    assert response.status_code == 200, response.text
    assert response.json()[0]["label"] == "7"


def test_identity_gives_back_what_it_got(client: httpx.Client) -> None:
    values = [float(i) for i in range(64)]
    body = {"inputs": [{"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": values}]}
    answer = client.post("/v2/models/identity/infer", json=body).json()
    assert answer["outputs"][0]["data"] == values
    assert answer["outputs"][0]["shape"] == [1, 64]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer tg_live_nothing"}, {"X-API-Key": "wrong"}])
@pytest.mark.parametrize(
    "path", ["/hf/models/sentiment", "/v1/embeddings", "/v2/models/identity/infer", "/tei/embeddings/embed"]
)
def test_without_a_valid_key_nothing_is_answered(stack: Any, path: str, headers: dict[str, str]) -> None:
    response = httpx.post(f"{stack.gateway_url}{path}", json={"inputs": "x"}, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["x-request-id"]
