"""Where a body can be sent in each dialect, and short ways to make bad ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.live.hostile.invariants import Gateway

ROW = [0.5] * 64


@dataclass(frozen=True)
class Endpoint:
    """One route that takes JSON: where, whose error body it has, and a body that is good."""

    path: str
    dialect: str
    good: dict[str, Any]

    def __str__(self) -> str:
        return self.path


ENDPOINTS = (
    Endpoint(
        "/v2/models/identity/infer",
        "oip",
        {"inputs": [{"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": ROW}]},
    ),
    Endpoint("/v2/models/identity/generate", "oip", {"INPUT": ROW}),
    Endpoint("/v2/models/identity/generate_stream", "oip", {"INPUT": ROW}),
    Endpoint("/hf/models/sentiment", "hf", {"inputs": "A fine film."}),
    Endpoint("/hf/models/qa", "hf", {"inputs": {"question": "Where?", "context": "She is in London."}}),
    Endpoint("/hf/models/embeddings/pipeline/sentence-similarity", "hf",
             {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    Endpoint("/v1/embeddings", "openai", {"model": "embeddings", "input": "A text."}),
    Endpoint("/tei/embeddings/embed", "tei", {"inputs": "A text."}),
    Endpoint("/tei/sentiment/predict", "tei", {"inputs": "A text."}),
    Endpoint("/tei/embeddings/rerank", "tei", {"query": "a", "texts": ["b"]}),
    Endpoint("/tei/embeddings/similarity", "tei", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
)  # fmt: skip
INFER = ENDPOINTS[0].path


class Sender:
    """Requests with the gateway's key."""

    def __init__(self, gateway: Gateway) -> None:
        self.http = httpx.Client(base_url=gateway.url, headers=gateway.headers, timeout=60.0)
        self._channel = grpc.insecure_channel(gateway.grpc_address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = tuple(gateway.headers.items())

    def close(self) -> None:
        """Close the connections."""
        self.http.close()
        self._channel.close()

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """``body`` as it is if it is bytes, otherwise as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(path, content=content, headers={"content-type": "application/json", **named})

    def binary(self, item: dict[str, Any], raw: bytes, **more: Any) -> httpx.Response:
        """An inference of ``item`` with ``raw`` as its data behind the JSON."""
        whole = {name: value for name, value in item.items() if name != "data"}
        whole["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps(infer_body(whole, **more)).encode()
        return self.post(INFER, head + raw, Inference_Header_Content_Length=str(len(head)))

    def infer(self, message: Any) -> Any:
        """ModelInfer's reply, or its error."""
        try:
            return self._stub.ModelInfer(message, metadata=self._metadata, timeout=60.0)
        except grpc.RpcError as error:
            return error

    def stream(self, *messages: Any) -> list[Any]:
        """Everything that ModelStreamInfer answers."""
        return list(self._stub.ModelStreamInfer(iter(messages), metadata=self._metadata, timeout=60.0))


@contextmanager
def sender(gateway: Gateway) -> Iterator[Sender]:
    """A :class:`Sender` for as long as the block lasts."""
    opened = Sender(gateway)
    try:
        yield opened
    finally:
        opened.close()


def tensor(**changes: Any) -> dict[str, Any]:
    """The good input of ``identity`` with ``changes``; None takes a member away."""
    whole = {"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": ROW} | changes
    return {name: value for name, value in whole.items() if value is not None}


def infer_body(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An inference request of ``inputs``; of the good one, if there are none."""
    return {"inputs": list(inputs) or [tensor()], **more}


def message(
    shape: Sequence[int] = (1, 64), datatype: str = "FP32", name: str = "INPUT", raw: bytes | None = bytes(256)
) -> Any:
    """A gRPC inference request for ``identity``."""
    made = pb.ModelInferRequest(model_name="identity")
    made.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        made.raw_input_contents.append(raw)
    return made


def nested(levels: int, kind: str = "list") -> bytes:
    """JSON of so many containers in each other."""
    if kind == "list":
        return b"[" * levels + b"]" * levels
    return b'{"a":' * levels + b"1" + b"}" * levels
