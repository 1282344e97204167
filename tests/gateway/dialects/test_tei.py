"""The text-embeddings-inference dialect over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient

from gateway.errors import RateLimited
from tests.gateway.dialects.served import KEY, Served

LONG = "hello " * 100


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {KEY}"}) as connection:
        yield connection


def ask(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(f"/tei/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestClients:
    """Unmodified clients pointed at TEI's addresses."""

    def test_huggingface_hub(self, served: Served) -> None:
        client = InferenceClient(model=f"{served.url}/tei/embeddings", token=KEY)
        assert client.feature_extraction("hello", normalize=True, truncation_direction="right").shape == (1, 16)
        similar = InferenceClient(model=f"{served.url}/tei/embeddings/similarity", token=KEY)
        assert similar.sentence_similarity("a", other_sentences=["a"])[0] == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("suffix", ["", "/v1"])
    def test_openai(self, served: Served, suffix: str) -> None:
        url = f"{served.url}/tei/embeddings{suffix}"
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            assert len(client.embeddings.create(model="whatever", input="hello").data[0].embedding) == 16
            with pytest.raises(openai.UnprocessableEntityError) as error:
                client.embeddings.create(model="whatever", input=LONG)
            body: Any = error.value.body
            assert body.keys() == {"message", "code", "type"}
            assert body["type"] == "Validation"


class TestEmbed:
    def test_always_a_list_of_vectors(self, http: httpx.Client) -> None:
        one = ask(http, "embeddings/embed", inputs="hello")
        many = ask(http, "embeddings/embed", inputs=["hello", "hello world"])
        ids = ask(http, "embeddings/embed", inputs=[101, 7592, 102])
        assert np.array(one).shape == (1, 16)
        assert np.array(many).shape == (2, 16)
        assert one == ids == [many[0]]
        assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)

    def test_options(self, http: httpx.Client) -> None:
        raw = ask(http, "embeddings/embed", inputs="hello", normalize=False)
        assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
        prompted = ask(http, "embeddings/embed", inputs="hello", prompt_name="query")
        assert prompted == ask(http, "embeddings/embed", inputs="query: hello")
        assert np.array(ask(http, "embeddings/embed", inputs="hello", dimensions=4)).shape == (1, 4)
        left = ask(http, "embeddings/embed", inputs=LONG + "world", truncate=True, truncation_direction="Left")
        right = ask(http, "embeddings/embed", inputs=LONG + "world", truncate=True, truncation_direction="Right")
        assert left != right

    def test_all_tokens(self, http: httpx.Client) -> None:
        answer = ask(http, "embeddings/embed_all", inputs=["hello", "hello world"])
        assert [np.array(matrix).shape for matrix in answer] == [(3, 16), (4, 16)]

    def test_own_task(self, http: httpx.Client) -> None:
        expected = ask(http, "embeddings/embed", inputs="hello")
        assert ask(http, "embeddings", inputs="hello") == expected
        assert ask(http, "embeddings/", inputs="hello") == expected
        assert ask(http, "embeddings/invocations", inputs="hello") == expected
        assert {label["label"] for label in ask(http, "sentiment", inputs="hello")} == {"negative", "positive"}

    def test_compute_headers(self, http: httpx.Client) -> None:
        headers = http.post("/tei/embeddings/embed", json={"inputs": ["hello", "hello world"]}).headers
        assert headers["x-compute-tokens"] == "7"
        assert headers["x-compute-characters"] == "16"
        for name in ("compute-time", "total-time", "tokenization-time", "queue-time", "inference-time"):
            assert headers[f"x-{name}"].isdigit()
        assert headers["x-compute-type"]


class TestPredict:
    def test_one_pair_batch(self, http: httpx.Client) -> None:
        one = ask(http, "sentiment/predict", inputs="hello")
        assert [one] == ask(http, "sentiment/predict", inputs=[["hello"]])
        assert ask(http, "sentiment/predict", inputs=["hello"]) == one
        pair = ask(http, "sentiment/predict", inputs=["hello", "world"])
        assert {label["label"] for label in pair} == {"negative", "positive"}
        assert ask(http, "sentiment/predict", inputs=[["hello"], ["hello", "world"]]) == [one, pair]

    def test_raw_scores(self, http: httpx.Client) -> None:
        raw = ask(http, "sentiment/predict", inputs="hello", raw_scores=True)
        assert sum(label["score"] for label in raw) != pytest.approx(1)

    @pytest.mark.parametrize("inputs", [[], ["a", "b", "c"], [["a", "b", "c"]], [[]], [["a"], "b"], 7])
    def test_other_shapes(self, http: httpx.Client, inputs: Any) -> None:
        assert http.post("/tei/sentiment/predict", json={"inputs": inputs}).status_code in {400, 422}


class TestRerank:
    def test_bi_encoder(self, http: httpx.Client) -> None:
        texts = ["the cat sat", "a dog", "something else"]
        raw = ask(http, "embeddings/rerank", query="a dog", texts=texts, raw_scores=True, return_text=True)
        assert [raw[0]["index"], raw[0]["text"]] == [1, "a dog"]
        assert raw[0]["score"] == pytest.approx(1, abs=1e-6)
        assert [item["score"] for item in raw] == sorted((item["score"] for item in raw), reverse=True)
        scores = ask(http, "embeddings/rerank", query="a dog", texts=texts)
        assert all(item.keys() == {"index", "score"} and 0 <= item["score"] <= 1 for item in scores)
        assert [item["index"] for item in scores] == [item["index"] for item in raw]

    def test_cross_encoder(self, http: httpx.Client) -> None:
        raw = ask(http, "relevance/rerank", query="a dog", texts=["one", "two", "three"], raw_scores=True)
        scores = ask(http, "relevance/rerank", query="a dog", texts=["one", "two", "three"])
        assert [item["index"] for item in raw] == [item["index"] for item in scores]
        for logit, score in zip(raw, scores, strict=True):
            assert score["score"] == pytest.approx(1 / (1 + np.exp(-logit["score"])), rel=1e-5)

    def test_similarity(self, http: httpx.Client) -> None:
        inputs = {"source_sentence": "a dog", "sentences": ["a dog", "the cat"]}
        scores = ask(http, "embeddings/similarity", inputs=inputs, parameters={"truncate": True})
        assert scores[0] == pytest.approx(1, abs=1e-6)
        assert len(scores) == 2


class TestTokenizer:
    def test_tokenize(self, http: httpx.Client) -> None:
        tokens = ask(http, "embeddings/tokenize", inputs="Hello, wörldliness")[0]
        assert tokens[0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
        assert tokens[1] == {"id": 7592, "text": "Hello", "special": False, "start": 0, "stop": 5}
        assert "".join(token["text"] for token in tokens[3:-1]) == "wörldliness"
        bare = ask(http, "embeddings/tokenize", inputs=["hello", "world"], add_special_tokens=False)
        assert [[token["id"] for token in text] for text in bare] == [[7592], [2088]]

    def test_decode(self, http: httpx.Client) -> None:
        assert ask(http, "embeddings/decode", ids=[101, 7592, 2088, 102]) == ["hello world"]
        kept = ask(http, "embeddings/decode", ids=[[101, 7592], [2088]], skip_special_tokens=False)
        assert kept == ["[CLS] hello", "world"]

    def test_nothing_is_billed(self, http: httpx.Client, served: Served) -> None:
        before = len(served.records.finished)
        ask(http, "sentiment/tokenize", inputs="hello " * 5_000)
        ask(http, "sentiment/decode", ids=[7592] * 10_000)
        assert len(served.records.finished) == before

    @pytest.mark.parametrize("path", ["embeddings/tokenize", "embeddings/decode"])
    @pytest.mark.parametrize("length", [2, 10_000])
    def test_it_holds_a_place_while_it_works(self, http: httpx.Client, served: Served, path: str, length: int) -> None:
        """Limits hold for it as for every call, although it is not billed."""
        field = "inputs" if path.endswith("tokenize") else "ids"
        bodies: list[Any] = [" ".join(["hello"] * length), [7592] * length]
        body = {field: bodies[field == "ids"]}
        turnstile = served.turnstile
        entered, left = turnstile.entered, turnstile.left
        assert http.post(f"/tei/{path}", json=body).status_code == 200
        assert (turnstile.entered, turnstile.left) == (entered + 1, left + 1)
        bad = {field: "\0" if field == "inputs" else [-1]}
        assert http.post(f"/tei/{path}", json=bad).status_code == 422
        assert (turnstile.entered, turnstile.left) == (entered + 2, left + 2)
        turnstile.refusal = RateLimited("slow down", retry_after_s=1)
        assert http.post(f"/tei/{path}", json=body).status_code == 429
        assert (turnstile.entered, turnstile.left) == (entered + 2, left + 2)

    @pytest.mark.parametrize("ids", [[-1], [30522], [1, "a"], [[1], 2], "a", [2**70]])
    def test_bad_ids(self, http: httpx.Client, ids: Any) -> None:
        assert http.post("/tei/embeddings/decode", json={"ids": ids}).status_code == 422


class TestInfoAndErrors:
    def test_info(self, http: httpx.Client) -> None:
        info = http.get("/tei/embeddings/info").json()
        assert info["model_type"]["embedding"] == {"pooling": "mean"}
        assert info["model_type"]["reranker"]["kind"] == "bi-encoder"
        assert info["max_input_length"] == 64
        classifier = http.get("/tei/relevance/info").json()["model_type"]
        assert classifier["classifier"]["id2label"] == {"0": "relevance"}
        assert classifier["reranker"]["kind"] == "cross-encoder"

    def test_health(self, http: httpx.Client, served: Served) -> None:
        answer = http.get("/tei/embeddings/health")
        assert (answer.status_code, answer.content) == (200, b"")
        served.models.unready.add("embeddings")
        try:
            sick = http.get("/tei/embeddings/health")
        finally:
            served.models.unready.clear()
        assert sick.status_code == 503
        assert sick.json()["error_type"] == "Unhealthy"

    def test_a_bad_key_gets_no_body(self, served: Served) -> None:
        answer = httpx.post(f"{served.url}/tei/embeddings/embed", json={"inputs": "a"})
        assert (answer.status_code, answer.content) == (401, b"")

    @pytest.mark.parametrize(
        ("path", "body", "status", "kind"),
        [
            ("embeddings/embed", {"inputs": LONG}, 422, "Validation"),
            ("embeddings/embed", {"inputs": []}, 400, "Empty"),
            ("embeddings/embed", {"inputs": ""}, 422, "Validation"),
            ("embeddings/embed", {"inputs": "a", "x": 1}, 422, "Validation"),
            ("embeddings/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation"),
            ("embeddings/embed", {"inputs": "a", "prompt_name": "none"}, 422, "Validation"),
            ("embeddings/embed", {}, 422, "Validation"),
            ("embeddings/embed_sparse", {"inputs": "a"}, 404, "Validation"),
            ("embeddings/predict", {"inputs": "a"}, 404, "Validation"),
            ("embeddings/rerank", {"query": "a", "texts": []}, 400, "Empty"),
            ("relevance/rerank", {"query": "a", "texts": []}, 400, "Empty"),
            ("embeddings/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty"),
            ("embeddings/similarity", {"inputs": {"source_sentence": "a", "sentences": "a"}}, 422, "Validation"),
            ("embeddings/tokenize", {"inputs": []}, 400, "Empty"),
            ("embeddings/decode", {"ids": []}, 400, "Empty"),
            ("embeddings/decode", {"ids": [[]]}, 400, "Empty"),
            ("embeddings/decode", {"ids": [[101], []]}, 400, "Empty"),
            ("embeddings/embed", {"inputs": [[]]}, 400, "Empty"),
            ("embeddings/embed_all", {"inputs": []}, 400, "Empty"),
            ("embeddings/", {"inputs": []}, 400, "Empty"),
            ("embeddings//", {"inputs": "a"}, 404, "Validation"),
            ("embeddings/rerank", {"query": "a"}, 422, "Validation"),
            ("sentiment/embed", {"inputs": "a"}, 404, "Validation"),
            ("sentiment/rerank", {"query": "a", "texts": ["b"]}, 404, "Validation"),
            ("none/embed", {"inputs": "a"}, 404, "Validation"),
            ("identity/tokenize", {"inputs": "a"}, 404, "Validation"),
            ("colours", {"inputs": "a"}, 404, "Validation"),
        ],
    )
    def test_refused(self, http: httpx.Client, path: str, body: Any, status: int, kind: str) -> None:
        answer = http.post(f"/tei/{path}", json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (status, kind), answer.text
        assert isinstance(answer.json()["error"], str)

    def test_malformed_and_other_type(self, http: httpx.Client) -> None:
        assert http.post("/tei/embeddings/embed", content=b"{").status_code == 400
        answer = http.post("/tei/embeddings/embed", content=b"{}", headers={"Content-Type": "text/xml"})
        assert answer.status_code == 415

    def test_overload(self, http: httpx.Client, served: Served) -> None:
        served.turnstile.refusal = RateLimited("slow down", retry_after_s=1)
        answer = http.post("/tei/embeddings/embed", json={"inputs": "a"})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "Overloaded")
