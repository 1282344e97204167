"""The OpenAI dialect over HTTP: the openai package first, then raw requests."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from gateway.errors import BudgetExceeded, RateLimited
from tests.gateway.dialects.served import KEY, NARROW_KEY, Served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as connection:
        yield connection


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {KEY}"}) as connection:
        yield connection


class TestClient:
    """Unmodified ``openai``."""

    def test_models(self, client: openai.OpenAI) -> None:
        names = [model.id for model in client.models.list()]
        assert {"embeddings", "sentiment", "identity"} <= set(names)
        model = client.models.retrieve("embeddings")
        assert (model.id, model.object, model.owned_by) == ("embeddings", "model", "tidegate")
        assert model.created == 1_795_464_000
        extra: Any = model.model_extra
        assert extra["tidegate"]["ready"] is True
        assert extra["tidegate"]["tasks"][0] == "feature-extraction"

    def test_models_are_those_of_the_key(self, served: Served) -> None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=NARROW_KEY, max_retries=0) as narrow:
            assert [model.id for model in narrow.models.list()] == ["sentiment"]
            with pytest.raises(openai.PermissionDeniedError):
                narrow.models.retrieve("embeddings")

    @pytest.mark.parametrize("encoding", [None, "float", "base64"])
    def test_embeddings(self, client: openai.OpenAI, encoding: Any) -> None:
        answer = client.embeddings.create(
            model="embeddings", input=["hello", "hello world"], encoding_format=encoding or openai.omit, user="me"
        )
        if encoding == "base64":
            raw: Any = [item.embedding for item in answer.data]
            vectors = np.stack([np.frombuffer(base64.b64decode(item), "<f4") for item in raw])
        else:
            vectors = np.array([item.embedding for item in answer.data])
        assert vectors.shape == (2, 16)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
        assert [item.index for item in answer.data] == [0, 1]
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
        assert answer.model == "embeddings"

    def test_both_encodings_are_the_same_numbers(self, http: httpx.Client) -> None:
        body = {"model": "embeddings", "input": "hello"}
        as_float = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
        as_base64 = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0][
            "embedding"
        ]
        assert np.frombuffer(base64.b64decode(as_base64), "<f4").tolist() == as_float

    def test_token_ids(self, client: openai.OpenAI) -> None:
        text = client.embeddings.create(model="embeddings", input="hello world").data[0].embedding
        bare = client.embeddings.create(model="embeddings", input=[7592, 2088])
        wrapped = client.embeddings.create(model="embeddings", input=[[101, 7592, 2088, 102], [7592]])
        assert bare.data[0].embedding == text == wrapped.data[0].embedding
        assert bare.usage.total_tokens == 4
        assert wrapped.usage.total_tokens == 7

    def test_dimensions(self, client: openai.OpenAI) -> None:
        whole = client.embeddings.create(model="embeddings", input="hello").data[0].embedding
        short = client.embeddings.create(model="embeddings", input="hello", dimensions=3).data[0].embedding
        np.testing.assert_allclose(short, np.array(whole[:3]) / np.linalg.norm(whole[:3]), rtol=1e-5)

    def test_error_objects(self, client: openai.OpenAI, served: Served) -> None:
        with pytest.raises(openai.NotFoundError) as error:
            client.embeddings.create(model="org/name", input="a")
        assert error.value.param == "model"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("org/name")
        with pytest.raises(openai.NotFoundError, match="makes no embeddings"):
            client.embeddings.create(model="sentiment", input="a")
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            client.embeddings.create(model="embeddings", input="hello", dimensions=17)
        assert invalid.value.param == "dimensions"
        assert invalid.value.type == "invalid_request_error"
        with pytest.raises(openai.UnprocessableEntityError, match="input has 102 tokens; the model takes 64") as long:
            client.embeddings.create(model="embeddings", input="hello " * 100)
        assert long.value.param == "input"
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as unknown,
        ):
            stranger.embeddings.create(model="embeddings", input="a")
        assert unknown.value.code == "invalid_api_key"
        assert unknown.value.request_id

    def test_limits(self, client: openai.OpenAI, served: Served) -> None:
        served.turnstile.refusal = RateLimited("slow down", retry_after_s=2)
        with pytest.raises(openai.RateLimitError) as error:
            client.embeddings.create(model="embeddings", input="a")
        assert error.value.code == "rate_limit_exceeded"
        assert error.value.response.headers["retry-after"] == "2"
        served.turnstile.refusal = BudgetExceeded("the budget is spent")
        with pytest.raises(openai.APIStatusError) as spent:
            client.embeddings.create(model="embeddings", input="a")
        assert spent.value.status_code == 402
        assert spent.value.code == "insufficient_quota"

    def test_it_retries_what_may_be_retried(self, served: Served) -> None:
        served.turnstile.refusal = RateLimited("slow down", retry_after_s=0.1)
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=1) as patient:
            assert patient.embeddings.create(model="embeddings", input="a").data


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"model":"embeddings","model":"embeddings","input":"a"}', 400),
        (b'{"model":"embeddings"}', 422),
        (b'{"input":"a"}', 422),
        (b'{"model":"embeddings","input":""}', 422),
        (b'{"model":"embeddings","input":[]}', 422),
        (b'{"model":"embeddings","input":[[]]}', 422),
        (b'{"model":"embeddings","input":[""]}', 422),
        (b'{"model":"embeddings","input":[-1]}', 422),
        (b'{"model":"embeddings","input":[30522]}', 422),
        (b'{"model":"embeddings","input":[1,true]}', 422),
        (b'{"model":"embeddings","input":[1.5]}', 422),
        (b'{"model":"embeddings","input":["a",1]}', 422),
        (b'{"model":"embeddings","input":"a","dimensions":0}', 422),
        (b'{"model":"embeddings","input":"a","encoding_format":"hex"}', 422),
        (b'{"model":"embeddings","input":"a","x":1}', 422),
        (b'{"model":7,"input":"a"}', 422),
    ],
)
def test_refused(http: httpx.Client, served: Served, body: bytes, status: int) -> None:
    before = len(served.models.requests)
    answer = http.post("/v1/embeddings", content=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert len(served.models.requests) == before


def test_other_content_type(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", content=b"<a/>", headers={"Content-Type": "application/xml"})
    assert answer.status_code == 415
