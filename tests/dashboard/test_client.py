"""The HTTP client: what it sends, what it reads from bodies and headers, what it says when it fails."""

from __future__ import annotations

import socket

import httpx
import numpy as np
import pytest

from dashboard.client import Entity, GatewayClient, GatewayFailure, Score, failure, parse_server_timing, task_path
from tests.dashboard.contract_server import INFER_ONLY, KEY, ContractGateway


def test_server_timing_is_read_by_name() -> None:
    assert parse_server_timing('auth;dur=0.05, infer;dur=11.7;desc=x,total;dur="13"') == {
        "auth": 0.05,
        "infer": 11.7,
        "total": 13.0,
    }


@pytest.mark.parametrize("value", ["", ",", "auth", "auth;dur=", "auth;dur=x", "auth;dur=nan", "auth;dur=-1", ";dur=1"])
def test_malformed_server_timing_is_skipped(value: str) -> None:
    assert parse_server_timing(value) == {}


def test_answer_carries_labels_and_metering(client: GatewayClient) -> None:
    answer = client.classify_text("sentiment", "A fine film.", top_k=3)
    assert answer.value[0] == Score("positive", 0.93)
    measured = answer.metering
    assert (measured.tokens, measured.pixels) == (17, 0)
    assert measured.cost_usd == pytest.approx(1.2345e-6)
    assert measured.compute_ms == pytest.approx(9.4)
    assert measured.usage_id == "0199-usage"
    assert measured.total_ms == pytest.approx(13.9)
    assert measured.elapsed_ms > 0


def test_split_adds_up_to_gateway_and_network(client: GatewayClient) -> None:
    split = client.classify_text("sentiment", "A fine film.").metering.split()
    assert [name for name, _ in split] == [
        "auth", "admit", "preprocess", "infer", "postprocess", "record", "other", "network",
    ]  # fmt: skip
    assert sum(ms for name, ms in split if name != "network") == pytest.approx(13.9)


def test_key_travels_in_the_header_only(client: GatewayClient, gateway: ContractGateway) -> None:
    client.classify_text("sentiment", "A fine film.")
    (request,) = gateway.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert KEY.encode() not in request.body
    assert KEY not in request.path + str(request.query)


def test_image_travels_as_it_is(client: GatewayClient, gateway: ContractGateway) -> None:
    answer = client.classify_image("imagenet", b"\xff\xd8\xffdata", "image/jpeg")
    (request,) = gateway.requests
    assert request.body == b"\xff\xd8\xffdata"
    assert request.headers["content-type"] == "image/jpeg"
    assert answer.value[0].label == "tabby"
    assert answer.metering.pixels == 135_300


def test_entities_have_offsets(client: GatewayClient) -> None:
    text = "Marie Curie lived in Paris."
    entities = client.entities("entities", text).value
    assert entities[0] == Entity("PER", "Marie Curie", 0.98, 0, 11)
    assert text[entities[1].start : entities[1].end] == "Paris"


@pytest.mark.parametrize("top_k", [1, 3])
def test_answers_are_a_list_whatever_the_gateway_sends(client: GatewayClient, top_k: int) -> None:
    spans = client.answer("qa", "When?", "It opened on May 27, 1937.", top_k=top_k).value
    assert len(spans) == top_k
    assert spans[0].answer == "May 27, 1937"


def test_embeddings_are_a_matrix(client: GatewayClient, gateway: ContractGateway) -> None:
    vectors = client.embed("embeddings", ["one", "two", "three"]).value
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    assert gateway.requests[0].path == "/hf/models/embeddings/pipeline/feature-extraction"
    assert gateway.requests[0].json()["normalize"] is True


def test_translation_and_zero_shot(client: GatewayClient) -> None:
    assert "今天" in client.translate("translate-zh-en", "今天").value
    assert [score.label for score in client.zero_shot("embeddings", "text", ["a", "b"]).value] == ["a", "b"]


def test_models_have_cards(client: GatewayClient) -> None:
    models = {model.name: model for model in client.models()}
    assert models["digits"].grey
    assert not models["imagenet"].grey
    assert not models["translate-zh-en"].ready
    assert models["translate-zh-en"].languages == ("zh", "en")
    assert "zero-shot-classification" in models["embeddings"].tasks


def test_usage_needs_its_scope(gateway: ContractGateway, client: GatewayClient) -> None:
    assert {row["model"] for row in client.usage("model")} == {"sentiment", "imagenet"}
    with (
        httpx.Client(base_url=gateway.url, trust_env=False) as http,
        pytest.raises(GatewayFailure, match=r"no right .*usage:read") as caught,
    ):
        GatewayClient(http, INFER_ONLY).usage("model")
    assert caught.value.kind == "forbidden"


def test_a_name_with_a_slash_stays_one_segment() -> None:
    assert task_path("org/name") == "/hf/models/org%2Fname"


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "says"),
    [
        (401, '{"error":"no"}', {}, "key", "does not accept this key"),
        (402, '{"error":"Budget of the month is spent."}', {}, "budget", "budget"),
        (403, '{"title":"Forbidden","detail":"Needs usage:read."}', {}, "forbidden", "Needs usage:read."),
        (404, '{"error":{"message":"No such model"}}', {}, "missing", "No such model"),
        (413, "", {}, "input", "too large"),
        (422, '{"error":["text is too long","try less"]}', {}, "input", "text is too long; try less"),
        (429, '{"error":"slow"}', {"Retry-After": "7"}, "busy", "Try again in 7 s."),
        (429, "", {"Retry-After": "soon"}, "busy", "Try again in a moment."),
        (503, '{"error":"down"}', {"Retry-After": "2"}, "down", "Try again in 2 s."),
        (500, "<html>", {}, "error", "HTTP 500"),
    ],
)
def test_failures_are_one_friendly_line(status: int, body: str, headers: dict[str, str], kind: str, says: str) -> None:
    found = failure(httpx.Response(status, text=body, headers=headers | {"X-Request-Id": "r-1"}))
    assert found.kind == kind
    assert says in str(found)
    assert "\n" not in str(found)
    assert (found.status, found.request_id) == (status, "r-1")


def test_long_and_many_lined_messages_are_cut() -> None:
    found = failure(httpx.Response(422, json={"error": "a\nb" * 1000}))
    assert "\n" not in str(found)
    assert len(str(found)) <= 300


def test_no_gateway_is_said_plainly() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with httpx.Client(base_url=url, trust_env=False) as http, pytest.raises(GatewayFailure) as caught:
            GatewayClient(http, KEY).ready()
    assert caught.value.kind == "unreachable"
    assert "Is it running?" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", [None, "", "schlüssel", f"{KEY}\n{KEY}", f"{KEY} ", "a\tb", f"{KEY}\0"])
def test_a_key_that_cannot_be_one_is_not_sent(gateway: ContractGateway, key: str | None) -> None:
    with httpx.Client(base_url=gateway.url, trust_env=False) as http, pytest.raises(GatewayFailure) as caught:
        GatewayClient(http, key).models()
    assert caught.value.kind == "key"
    assert gateway.requests == []


def test_an_answer_of_another_shape_is_a_failure_not_a_crash(gateway: ContractGateway) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"surprise": 1}))
    with httpx.Client(base_url=gateway.url, transport=transport) as http, pytest.raises(GatewayFailure, match="shape"):
        GatewayClient(http, KEY).translate("translate-en-fr", "text")
