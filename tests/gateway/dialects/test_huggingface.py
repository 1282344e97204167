"""The Hugging Face dialect over HTTP: huggingface_hub's own client first, then raw requests."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from gateway.errors import RateLimited
from gateway.types import Units
from tests.gateway.dialects.served import KEY, NARROW_KEY, Served


def client(served: Served, model: str, key: str = KEY) -> InferenceClient:
    return InferenceClient(model=f"{served.url}/hf/models/{model}", token=key)


def picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (60, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {KEY}"}) as connection:
        yield connection


class TestClient:
    """Unmodified ``InferenceClient``."""

    def test_text_classification_keeps_all_labels(self, served: Served) -> None:
        answer = client(served, "sentiment").text_classification("a great film")
        assert sorted(label.label for label in answer) == ["negative", "positive"]
        assert sum(label.score for label in answer) == pytest.approx(1)
        assert answer[0].score >= answer[1].score

    def test_text_classification_options(self, served: Served) -> None:
        answer = client(served, "sentiment").text_classification("a film", top_k=1, function_to_apply="sigmoid")
        assert len(answer) == 1
        assert 0 < answer[0].score < 1

    def test_token_classification(self, served: Served) -> None:
        text = "John Smith lives in Berlin."
        for entity in client(served, "entities").token_classification(text, aggregation_strategy="average"):
            assert entity.entity_group in {"PER", "LOC"}
            assert text[entity.start : entity.end] == entity.word

    def test_token_classification_without_aggregation(self, served: Served) -> None:
        answer = client(served, "entities").token_classification(
            "John Smith", aggregation_strategy="none", ignore_labels=[]
        )
        assert [entity.word for entity in answer] == ["john", "smith"]
        assert all(entity.entity and entity.entity_group is None for entity in answer)

    def test_question_answering_gives_one_answer(self, served: Served) -> None:
        context = "Ada Lovelace wrote the first program in 1843."
        answer = client(served, "qa").question_answering(question="Who wrote it?", context=context)
        assert not isinstance(answer, list)
        assert context[answer.start : answer.end] == answer.answer
        assert 0 < answer.score <= 1

    def test_question_answering_gives_a_list_when_several_are_wanted(self, served: Served) -> None:
        answer: Any = client(served, "qa").question_answering(
            question="Who wrote it?",
            context="Ada Lovelace wrote the first program.",
            top_k=3,
            max_answer_len=2,
            doc_stride=8,
            max_seq_len=32,
            max_question_len=16,
            handle_impossible_answer=True,
            align_to_words=True,
        )
        assert len(answer) == 3
        assert all(len(span.answer.split()) <= 2 for span in answer)

    def test_translation(self, served: Served) -> None:
        answer = client(served, "translate").translation("hello there", src_lang="zh", tgt_lang="en")
        assert answer.translation_text == "hello there"

    def test_feature_extraction(self, served: Served) -> None:
        one = client(served, "embeddings").feature_extraction("hello")
        many = client(served, "embeddings").feature_extraction(["hello", "good bye"], normalize=False, truncate=True)
        assert one.shape == (16,)
        assert many.shape == (2, 16)
        assert one.dtype == np.float32
        np.testing.assert_allclose(many[0] / np.linalg.norm(many[0]), one, rtol=1e-5)

    def test_feature_extraction_options(self, served: Served) -> None:
        vector = client(served, "embeddings").feature_extraction(
            "hello",
            normalize=True,
            prompt_name="query",
            dimensions=4,
            truncation_direction="left",
            encoding_format="float",
        )
        assert vector.shape == (4,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)

    def test_sentence_similarity(self, served: Served) -> None:
        scores = client(served, "embeddings").sentence_similarity("a dog", other_sentences=["a dog", "the cat"])
        assert scores[0] == pytest.approx(1, abs=1e-6)
        assert scores[1] < scores[0]

    def test_zero_shot_classification(self, served: Served) -> None:
        answer = client(served, "embeddings").zero_shot_classification(
            "a dog", candidate_labels=["dog", "cat"], hypothesis_template="a {}"
        )
        assert [label.label for label in answer] == ["dog", "cat"]
        assert sum(label.score for label in answer) == pytest.approx(1)

    def test_zero_shot_classification_with_several_right_labels(self, served: Served) -> None:
        answer = client(served, "embeddings").zero_shot_classification(
            "a dog", candidate_labels=["dog", "cat"], multi_label=True
        )
        assert all(0 <= label.score <= 1 for label in answer)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_image_as_bytes(self, served: Served, kind: str) -> None:
        answer = client(served, "colours").image_classification(picture("green", kind))
        assert answer[0].label == "green"
        assert len(answer) == 3

    def test_image_as_a_file(self, served: Served, tmp_path: Path) -> None:
        path = tmp_path / "blue.png"
        path.write_bytes(picture("blue"))
        assert client(served, "colours").image_classification(str(path))[0].label == "blue"
        assert client(served, "colours").image_classification(path)[0].label == "blue"

    def test_image_with_options_travels_as_base64(self, served: Served) -> None:
        answer = client(served, "colours").image_classification(picture("red"), top_k=1, function_to_apply="none")
        assert [label.label for label in answer] == ["red"]
        assert answer[0].score > 1

    def test_info_and_health(self, served: Served) -> None:
        endpoint = InferenceClient(model=f"{served.url}/hf/models/qa", token=KEY, provider="hf-inference")
        assert endpoint.get_endpoint_info()["pipeline_tag"] == "question-answering"
        assert endpoint.health_check()
        served.models.unready.add("qa")
        try:
            assert not endpoint.health_check()
        finally:
            served.models.unready.clear()

    def test_error_text_reaches_the_user(self, served: Served) -> None:
        with pytest.raises(HfHubHTTPError, match="too many|half|is empty"):
            client(served, "sentiment").text_classification(" ")

    def test_a_bad_key_and_a_model_not_granted(self, served: Served) -> None:
        with pytest.raises(HfHubHTTPError) as unknown:
            client(served, "sentiment", "wrong").text_classification("x")
        with pytest.raises(HfHubHTTPError) as forbidden:
            client(served, "qa", NARROW_KEY).question_answering(question="a", context="b")
        assert unknown.value.response.status_code == 401
        assert forbidden.value.response.status_code == 403


class TestShapes:
    """Lists and objects, batches and single inputs."""

    @pytest.mark.parametrize(
        ("model", "inputs", "parameters", "form"),
        [
            ("sentiment", "a", {}, "[[{"),
            ("sentiment", ["a", "b"], {}, "[[{"),
            ("entities", "John", {"ignore_labels": []}, "[{"),
            ("entities", ["John", "Mary"], {"ignore_labels": []}, "[[{"),
            ("qa", {"question": "a", "context": "b c"}, {}, "{"),
            ("qa", {"question": "a", "context": "b c"}, {"top_k": 2}, "[{"),
            ("qa", [{"question": "a", "context": "b c"}], {}, "[{"),
            ("qa", [{"question": "a", "context": "b c"}], {"top_k": 2}, "[[{"),
            ("translate", "a", {}, "[{"),
            ("translate", ["a", "b"], {}, "[{"),
            ("embeddings", "a", {}, "[0"),
            ("embeddings", ["a"], {}, "[[0"),
            ("embeddings", "a", {"token_embeddings": True}, "[[0"),
            ("embeddings", {"source_sentence": "a", "sentences": ["b"]}, {}, "[0"),
            ("embeddings", "a", {"candidate_labels": ["x"]}, "[{"),
            ("embeddings", ["a", "b"], {"candidate_labels": ["x"]}, "[[{"),
        ],
    )
    def test_shape(self, http: httpx.Client, model: str, inputs: Any, parameters: Any, form: str) -> None:
        answer = http.post(f"/hf/models/{model}", json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        assert re.sub(r"-?[0-9]", "0", answer.text).startswith(form)
        assert answer.headers["content-type"] == "application/json"

    def test_a_batch_of_pictures(self, http: httpx.Client) -> None:
        inputs = [base64.b64encode(picture(colour)).decode() for colour in ("red", "blue")]
        answer = http.post("/hf/models/colours", json={"inputs": inputs, "parameters": {"top_k": 1}}).json()
        assert [labels[0]["label"] for labels in answer] == ["red", "blue"]

    def test_a_task_by_name(self, http: httpx.Client) -> None:
        answer = http.post("/hf/models/embeddings/pipeline/feature-extraction", json={"inputs": "a", "normalize": True})
        assert len(answer.json()) == 16
        assert http.post("/hf/models/embeddings/pipeline/translation", json={"inputs": "a"}).status_code == 404
        assert (
            http.post("/hf/models/embeddings/pipeline/zero-shot-classification", json={"inputs": "a"}).status_code
            == 422
        )

    def test_old_options_are_ignored(self, http: httpx.Client) -> None:
        body = {"inputs": "a", "options": {"wait_for_model": True, "use_cache": False}}
        assert http.post("/hf/models/sentiment", json=body).status_code == 200


class TestBodies:
    """Bytes that a body may be."""

    @pytest.mark.parametrize("content_type", [None, "application/octet-stream", "image/png", "image/jpeg; q=1"])
    def test_raw_picture(self, http: httpx.Client, content_type: str | None) -> None:
        headers = {"Content-Type": content_type} if content_type else {}
        answer = http.post("/hf/models/colours", content=picture("blue"), headers=headers)
        assert answer.json()[0]["label"] == "blue"

    @pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=utf-8"])
    def test_json(self, http: httpx.Client, content_type: str | None) -> None:
        headers = {"Content-Type": content_type} if content_type else {}
        assert http.post("/hf/models/sentiment", content=b'{"inputs":"a"}', headers=headers).status_code == 200

    @pytest.mark.parametrize("content_type", ["application/xml", "text/html", "multipart/form-data; boundary=x"])
    @pytest.mark.parametrize("model", ["sentiment", "colours"])
    def test_other_content_types(self, http: httpx.Client, model: str, content_type: str) -> None:
        answer = http.post(f"/hf/models/{model}", content=b"<a/>", headers={"Content-Type": content_type})
        assert answer.status_code == 415
        assert isinstance(answer.json()["error"], str)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"", 400),
            (b"{", 400),
            (b'{"inputs":"a"} x', 400),
            (b'{"inputs":"a","inputs":"b"}', 400),
            (b'{"inputs":NaN}', 400),
            (b'{"inputs":"\\ud800"}', 400),
            (b'{"inputs":"\xff"}', 400),
            (b'{"inputs":' + b"[" * 101 + b"]" * 101 + b"}", 400),
            (b"[" * 250_000, 400),
            (b"[]", 422),
            (b"{}", 422),
            (b'{"inputs":null}', 422),
            (b'{"inputs":[]}', 422),
            (b'{"inputs":7}', 422),
            (b'{"inputs":"a\\u0000b"}', 422),
            (b'{"inputs":"a","parameters":[]}', 422),
            (b'{"inputs":"a","parameters":{"top_k":"many"}}', 422),
            (b'{"inputs":"a","parameters":{"top_k":0}}', 422),
            (b'{"inputs":"a","parameters":{"top_k":true}}', 422),
            (b'{"inputs":"a","parameters":{"x":1}}', 400),
            (b'{"inputs":"a","x":1}', 400),
        ],
    )
    def test_refused(self, http: httpx.Client, served: Served, body: bytes, status: int) -> None:
        before = len(served.models.requests)
        answer = http.post("/hf/models/sentiment", content=body)
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["error"], str)
        assert answer.headers["x-error-message"] == answer.json()["error"]
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert len(served.models.requests) == before
        assert http.post("/hf/models/sentiment", json={"inputs": "a"}).status_code == 200

    def test_unknown_options_are_named_as_the_client_expects(self, http: httpx.Client) -> None:
        answer = http.post("/hf/models/sentiment", json={"inputs": "a", "parameters": {"x": 1, "watermark": True}})
        assert answer.json()["error"] == ("The following `model_kwargs` are not used by the model: ['watermark', 'x']")

    def test_a_header_cannot_be_injected(self, http: httpx.Client) -> None:
        answer = http.post("/hf/models/sentiment", json={"inputs": "a", "parameters": {"x\r\nSet-Cookie: é": 1}})
        assert answer.status_code == 400
        assert "set-cookie" not in answer.headers
        assert "\n" not in answer.headers["x-error-message"]

    @pytest.mark.parametrize(
        "url", ["http://169.254.169.254/", "https://example.com/a.png", "file:///etc/passwd", "data:text/plain,x"]
    )
    def test_urls_are_not_fetched(self, http: httpx.Client, url: str) -> None:
        answer = http.post("/hf/models/colours", json={"inputs": url})
        assert answer.status_code == 422
        assert "not fetched" in answer.json()["error"]

    def test_data_url(self, http: httpx.Client) -> None:
        url = "data:image/png;base64," + base64.b64encode(picture("red")).decode()
        assert http.post("/hf/models/colours", json={"inputs": url}).json()[0]["label"] == "red"


class TestErrors:
    def test_unknown_model_and_model_without_task(self, http: httpx.Client) -> None:
        assert http.post("/hf/models/none", json={"inputs": "a"}).status_code == 404
        assert http.post("/hf/models/identity", json={"inputs": "a"}).status_code == 404

    def test_rate_limit_keeps_its_headers(self, http: httpx.Client, served: Served) -> None:
        served.turnstile.refusal = RateLimited(
            "slow down", retry_after_s=6.5, headers={"RateLimit": '"requests";r=0;t=7'}
        )
        answer = http.post("/hf/models/sentiment", json={"inputs": "a"})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["ratelimit"] == '"requests";r=0;t=7'

    def test_a_model_that_is_not_ready(self, http: httpx.Client, served: Served) -> None:
        served.models.unready.add("sentiment")
        try:
            answer = http.post("/hf/models/sentiment", json={"inputs": "a"})
        finally:
            served.models.unready.clear()
        assert answer.status_code == 503
        assert "retry-after" in answer.headers


def test_units_are_recorded(http: httpx.Client, served: Served) -> None:
    http.post("/hf/models/sentiment", json={"inputs": ["hello", "hello world"]})
    assert served.records.finished[-1] == ("sentiment", "completed", Units(tokens=7, rows=2), 200)
    answer = http.post("/hf/models/colours", content=picture("red", size=(70, 50)))
    assert served.records.finished[-1] == ("colours", "completed", Units(pixels=3500, rows=1), 200)
    assert answer.headers["x-tidegate-pixels"] == "3500"
