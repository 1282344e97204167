"""Requests are seeded, unique, well-formed, and wrong answers are told from right ones."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from benchmarks.workloads import WORKLOADS, Payload, RawModel, WrongAnswer
from benchmarks.workloads.base import GOLDEN_EVERY

RANKS = json.dumps([{"index": index, "score": score} for index, score in ((0, 1), (2, 0.6), (1, 0.5), (3, 0))]).encode()
UNLIKE_ITSELF = RANKS.replace(b'"index": 0', b'"index": 9').replace(b'"index": 2', b'"index": 0')


@pytest.fixture(scope="module")
def workloads() -> dict[str, Any]:
    return {name: kind(5) for name, kind in WORKLOADS.items()}


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_inputs_are_unique_but_for_the_golden_ones(workloads: dict[str, Any], name: str) -> None:
    workload = workloads[name]
    payloads = [workload.request(index) for index in range(400)]
    unique = [payload.body for payload in payloads if payload.golden is None]
    assert len(set(unique)) == len(unique) >= 350
    assert all(payload.golden is not None for payload in payloads[::GOLDEN_EVERY]) or not workload.goldens


@pytest.mark.parametrize("name", ["embeddings", "imagenet", "identity"])
def test_a_seed_gives_the_same_requests_again(workloads: dict[str, Any], name: str) -> None:
    again, other = WORKLOADS[name](5), WORKLOADS[name](6)
    assert [again.request(i).body for i in range(9)] == [workloads[name].request(i).body for i in range(9)]
    assert other.request(1).body != again.request(1).body


def test_text_lengths_are_spread_as_people_write(workloads: dict[str, Any]) -> None:
    words = [len(json.loads(workloads["embeddings"].unique(index).body)["inputs"].split()) for index in range(2000)]
    assert 20 <= float(np.median(words)) <= 36
    assert np.percentile(words, 95) > 3 * np.median(words)


@pytest.mark.parametrize("name", ["imagenet", "digits"])
def test_pictures_are_jpegs_that_decode(workloads: dict[str, Any], name: str) -> None:
    first, second = (workloads[name].unique(index).body for index in (1, 1 + 96))
    assert first != second
    with Image.open(io.BytesIO(first)) as one, Image.open(io.BytesIO(second)) as other:
        assert one.format == "JPEG"
        assert one.tobytes() == other.tobytes()  # a comment makes it unique, the picture is the same


def test_the_grpc_message_is_what_tritonclient_would_send(workloads: dict[str, Any]) -> None:
    payload = workloads["identity"].unique(3)
    message = service_pb2.ModelInferRequest.FromString(payload.message)
    assert message.model_name == "identity"
    assert [(t.name, t.datatype, list(t.shape)) for t in message.inputs] == [("INPUT", "FP32", [1, 64])]
    assert list(message.raw_input_contents) == [payload.expected]
    size = int(dict(payload.headers)["Inference-Header-Content-Length"])
    assert payload.body[size:] == payload.expected
    assert json.loads(payload.body[:size])["inputs"][0]["parameters"] == {"binary_data_size": 256}


def test_token_ids_go_out_and_one_vector_is_asked_for(workloads: dict[str, Any]) -> None:
    workload = workloads["embeddings-tensors"]
    payload = workload.golden(3)
    message = service_pb2.ModelInferRequest.FromString(payload.message)
    assert [output.name for output in message.outputs] == ["sentence_embedding"]
    ids, mask = (np.frombuffer(raw, "<i8") for raw in message.raw_input_contents)
    assert [list(tensor.shape) for tensor in message.inputs] == [[1, len(ids)], [1, len(mask)]]
    assert len({len(workload.unique(index).body) for index in range(64)}) > 4  # lengths are mixed
    vector, other = np.eye(2, 384, dtype="<f4")
    workload.check(payload, b"header" + vector.tobytes())
    with pytest.raises(WrongAnswer, match="golden input 3"):
        workload.check(payload, b"header" + other.tobytes())
    with pytest.raises(WrongAnswer, match="hold no vector"):
        workload.check(payload, vector.tobytes()[4:])


def test_identity_is_compared_bit_by_bit(workloads: dict[str, Any]) -> None:
    workload = workloads["identity"]
    payload = workload.unique(3)
    workload.check(payload, b"header" + payload.expected)
    with pytest.raises(WrongAnswer):
        workload.check(payload, workload.unique(4).expected)


def _golden(workload: Any, number: int = 0) -> Payload:
    payload: Payload = workload.golden(number)
    return payload


def test_an_expected_label_is_demanded(workloads: dict[str, Any]) -> None:
    workload = workloads["sentiment"]
    payload = _golden(workload)
    assert payload.expected == "positive"
    workload.check(payload, b'[[{"label":"POSITIVE","score":0.98},{"label":"NEGATIVE","score":0.02}]]')
    with pytest.raises(WrongAnswer, match="golden"):
        workload.check(payload, b'[[{"label":"NEGATIVE","score":0.98},{"label":"POSITIVE","score":0.02}]]')


def test_the_first_answer_to_a_golden_input_binds_the_later_ones() -> None:
    workload = WORKLOADS["topics-zh"](1)
    workload.check(_golden(workload, 2), '[[{"label":"书籍","score":0.9}]]'.encode())
    workload.check(_golden(workload, 2), '[[{"label":"书籍","score":0.905}]]'.encode())
    with pytest.raises(WrongAnswer):
        workload.check(_golden(workload, 2), '[[{"label":"水果","score":0.9}]]'.encode())


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("sentiment", b"{}"),
        ("sentiment", b"not json"),
        ("sentiment", b'[[{"label":"POSITIVE","score":0.1}]]'),
        ("embeddings", b"[1.0, 2.0]"),
        ("embeddings", json.dumps([0.0] * 384).encode()),
        ("embeddings-openai", b'{"data":[]}'),
        ("qa", b'{"answer":"nowhere","score":0.5,"start":0,"end":3}'),
        ("entities", b'[{"entity_group":"PER","start":5,"end":90000}]'),
        ("translate-zh-en", b'{"translation_text":"hello"}'),
        ("imagenet", b"[]"),
        ("predict-tei", b'[{"label":"POSITIVE","score":0.1}]'),
        ("zero-shot-classification", b'[{"label":"politics","score":0.9}]'),
        ("sentence-similarity", b"[1.0, 0.2]"),
        ("sentence-similarity", b"[0.1, 0.9, 0.2, 0.3]"),  # nothing is more like a sentence than itself
        ("similarity-tei", b"[1.5, 0.2, 0.1, 0.1]"),
        (
            "rerank-tei",
            b'[{"index":0,"score":0.2},{"index":1,"score":0.9},{"index":2,"score":0},{"index":3,"score":0}]',
        ),
    ],
)
def test_answers_that_are_plainly_wrong(workloads: dict[str, Any], name: str, body: bytes) -> None:
    with pytest.raises(WrongAnswer):
        workloads[name].check(workloads[name].unique(1), body)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("predict-tei", b'[{"label":"POSITIVE","score":0.9},{"label":"NEGATIVE","score":0.1}]'),
        ("zero-shot-classification", b'[{"label":"food","score":0.9}]'),
        ("sentence-similarity", b"[1.0, 0.2, 0.1, -0.1]"),
        ("similarity-tei", b"[1.0, 0.2, 0.1, -0.1]"),
        (
            "rerank-tei",
            b'[{"index":0,"score":1},{"index":2,"score":0.6},{"index":1,"score":0.5},{"index":3,"score":0}]',
        ),
    ],
)
def test_answers_about_sentences_that_may_be_right(workloads: dict[str, Any], name: str, body: bytes) -> None:
    workloads[name].check(workloads[name].unique(1), body)


def test_an_answer_of_the_right_shape_passes(workloads: dict[str, Any]) -> None:
    vector = np.ones(384, dtype="<f4")
    workloads["embeddings"].check(workloads["embeddings"].unique(1), json.dumps(vector.tolist()).encode())
    qa = workloads["qa"].unique(1)
    context = json.loads(qa.body)["inputs"]["context"]
    answer = {"answer": context[4:11], "score": 0.7, "start": 4, "end": 11}
    workloads["qa"].check(qa, json.dumps(answer).encode())


def test_a_raw_model_is_loaded_from_its_metadata_alone() -> None:
    metadata = {
        "name": "m",
        "inputs": [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "attention_mask__1", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 3]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
    }
    message = service_pb2.ModelInferRequest.FromString(RawModel(1, metadata, lengths=(16,)).unique(0).message)
    ids, mask, picture = message.raw_input_contents
    assert [list(tensor.shape) for tensor in message.inputs] == [[1, 16], [1, 16], [1, 4, 4, 3]]
    assert np.frombuffer(mask, "<i8").tolist() == [1] * 16
    assert np.frombuffer(ids, "<i8").min() >= 1000
    assert len(picture) == 48
