"""Unmodified clients of the field, pointed at the gateway with the demo key."""

from __future__ import annotations

import io
import json
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import skimage.data
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.live


def hub(stack: Any, model: str, task: str = "") -> InferenceClient:
    suffix = f"/pipeline/{task}" if task else ""
    return InferenceClient(model=f"{stack.gateway_url}/hf/models/{model}{suffix}", token=stack.key)


def test_huggingface_hub_speaks_every_task(stack: Any, tmp_path: Any) -> None:
    picture = tmp_path / "cat.jpg"
    Image.fromarray(skimage.data.chelsea()).save(picture)
    assert "cat" in hub(stack, "imagenet").image_classification(str(picture))[0].label.lower()
    raw = io.BytesIO()
    Image.fromarray(skimage.data.chelsea()).save(raw, "PNG")
    assert len(hub(stack, "imagenet").image_classification(raw.getvalue(), top_k=3)) == 3
    assert hub(stack, "sentiment").text_classification("I love it.")[0].label.lower() == "positive"
    spans = hub(stack, "entities").token_classification("Angela Merkel lives in Berlin.", aggregation_strategy="simple")
    assert "Angela Merkel" in {span.word for span in spans}
    answer: Any = hub(stack, "qa").question_answering(question="Where is she?", context="She is in London today.")
    assert "London" in answer.answer
    assert hub(stack, "translate-en-fr").translation("Two dogs are running.").translation_text
    assert hub(stack, "embeddings").feature_extraction("hello", normalize=True).shape[-1] == 384
    near: Any = hub(stack, "embeddings", "sentence-similarity").sentence_similarity("a", other_sentences=["a", "b c d"])
    assert near[0] == pytest.approx(1.0, abs=1e-4)
    labels = hub(stack, "embeddings", "zero-shot-classification").zero_shot_classification(
        "The cake is in the oven.", candidate_labels=["baking", "politics"]
    )
    assert labels[0].label == "baking"


def test_huggingface_hub_shows_our_error(stack: Any) -> None:
    with pytest.raises(HfHubHTTPError, match="(?i)key"):
        InferenceClient(model=f"{stack.gateway_url}/hf/models/sentiment", token="tg_live_wrong").text_classification(
            "x"
        )


def test_openai_embeds_and_lists_models(stack: Any) -> None:
    with openai.OpenAI(base_url=f"{stack.gateway_url}/v1", api_key=stack.key) as client:
        reply = client.embeddings.create(model="embeddings", input=["hello", "world"])
        assert len(reply.data) == 2
        assert len(reply.data[0].embedding) == 384
        assert reply.usage.prompt_tokens == 6
        floats = client.embeddings.create(model="embeddings", input="hello", encoding_format="float")
        assert np.allclose(floats.data[0].embedding, reply.data[0].embedding, atol=1e-5)
        assert "embeddings" in {model.id for model in client.models.list()}
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="nothing", input="hello")
    with (
        openai.OpenAI(base_url=f"{stack.gateway_url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="(?i)key"),
    ):
        stranger.embeddings.create(model="embeddings", input="hello")


def test_tritonclient_http(stack: Any) -> None:
    url = stack.gateway_url.removeprefix("http://")
    with httpclient.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("identity", headers=stack.headers)
        metadata = client.get_model_metadata("identity", headers=stack.headers)
        assert metadata["inputs"] == [{"name": "INPUT", "datatype": "FP32", "shape": [-1, 64]}]
        array = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
        for binary in (True, False):
            tensor = httpclient.InferInput("INPUT", list(array.shape), "FP32")
            tensor.set_data_from_numpy(array, binary_data=binary)
            for compression in (None, "gzip", "deflate"):
                result = client.infer(
                    "identity",
                    [tensor],
                    headers=dict(stack.headers),
                    request_id="r1",
                    request_compression_algorithm=compression,
                    response_compression_algorithm=compression,
                )
                assert np.array_equal(result.as_numpy("OUTPUT"), array)
                assert result.get_response()["id"] == "r1"
        big = httpclient.InferInput("INPUT", [4096, 64], "FP32")
        big.set_data_from_numpy(np.zeros((4096, 64), dtype=np.float32))
        with pytest.raises(InferenceServerException, match="max_batch_size"):
            client.infer("identity", [big], headers=stack.headers)
        with pytest.raises(InferenceServerException, match="(?i)key"):
            client.infer("identity", [tensor])


def test_tritonclient_grpc(stack: Any) -> None:
    with grpcclient.InferenceServerClient(stack.grpc_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("identity", headers=stack.headers)
        assert client.get_model_metadata("identity", headers=stack.headers).inputs[0].name == "INPUT"
        array = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
        tensor = grpcclient.InferInput("INPUT", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        result = client.infer("identity", [tensor], headers=stack.headers)
        assert np.array_equal(result.as_numpy("OUTPUT"), array)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("identity", [tensor])
        assert "UNAUTHENTICATED" in str(caught.value.status())


def test_what_kserves_client_sends(stack: Any) -> None:
    """``kserve.InferRequest.to_rest``, as it writes requests: always with the model's name, an id of its own, and
    hints at content types where there are some.
    """
    row = [0.5] * 64
    tensor = {"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "parameters": {"content_type": "np"}}
    plain = {
        "id": "5d1e0bd8-7cd3-4b0c-8a3c-4c3a0c39f6d1", "model_name": "identity", "inputs": [{**tensor, "data": row}],
        "outputs": [{"name": "OUTPUT", "parameters": {"content_type": "np"}}], "parameters": {"content_type": "np"},
    }  # fmt: skip
    sized = {**tensor, "parameters": {"binary_data_size": 256}}
    head = json.dumps({"id": "1", "model_name": "identity", "inputs": [sized]}).encode()
    raw = head + np.array(row, "<f4").tobytes()
    with httpx.Client(base_url=stack.gateway_url, headers=stack.headers, timeout=60.0) as client:
        path = "/v2/models/identity/infer"
        empty = {"outputs": None, "parameters": None, "id": None}
        for body in (
            plain,
            {"model_name": "identity", "inputs": [{**tensor, "parameters": None, "data": row}], **empty},
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"] == row
        binary = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
        answer = client.post(path, content=raw, headers=binary)
        assert answer.status_code == 200, answer.text
        assert client.post(path, json={**plain, "model_name": "digits"}).status_code == 422
    message = pb.ModelInferRequest(model_name="identity", id="1")
    wanted = message.inputs.add(name="INPUT", datatype="FP32", shape=[1, 64])
    wanted.parameters["content_type"].string_param = "np"
    wanted.contents.fp32_contents.extend(row)
    with grpc.insecure_channel(stack.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        reply = stub.ModelInfer(message, metadata=tuple(stack.headers.items()), timeout=60)
        assert np.frombuffer(reply.raw_output_contents[0], "<f4").tolist() == row
