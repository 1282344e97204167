"""Raw inferences over the Open Inference Protocol: HTTP with binary tensors, and gRPC."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from typing_extensions import override

from benchmarks.workloads.base import Payload, Workload, WrongAnswer

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def varint(value: int) -> bytes:
    """Protocol Buffers' base-128 number."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(number: int, value: bytes) -> bytes:
    """A length-delimited Protocol Buffers field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def infer_message(
    model: str, tensors: Sequence[tuple[str, str, Sequence[int], bytes]], outputs: Sequence[str] = ()
) -> bytes:
    """A serialised ``inference.ModelInferRequest`` with raw contents; tensors are (name, datatype, shape, data).

    Without ``outputs`` all of them come back.

    Written field by field, so that preparing a request costs microseconds and no load generator
    spends its time in Protocol Buffers.
    """
    inputs = b"".join(
        field(5, field(1, name.encode()) + field(2, datatype.encode()) + field(3, b"".join(map(varint, shape))))
        for name, datatype, shape, _ in tensors
    )
    wanted = b"".join(field(6, field(1, name.encode())) for name in outputs)
    return field(1, model.encode()) + inputs + wanted + b"".join(field(7, data) for *_, data in tensors)


def infer_body(
    tensors: Sequence[tuple[str, str, Sequence[int], bytes]], outputs: Sequence[str]
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Body and headers of the same inference as HTTP with the binary tensor extension."""
    header = _encode(
        {
            "inputs": [
                {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
                for name, datatype, shape, data in tensors
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
    )
    body = header + b"".join(data for *_, data in tensors)
    return body, (("Inference-Header-Content-Length", str(len(header))),)


class Identity(Workload):
    """``identity``: 64 floats in, the same out; every answer is compared bit by bit."""

    name = "identity"
    model = "identity"
    width = 64

    def __init__(self, seed: int, model: str | None = None, path: str | None = None) -> None:
        super().__init__(seed)
        self.model = model or self.model
        self._path = path or f"/v2/models/{self.model}/infer"
        numbers = np.random.default_rng(seed)
        self._blocks = [numbers.standard_normal(self.width).astype("<f4") for _ in range(256)]

    @override
    @property
    def goldens(self) -> int:
        return 0

    @override
    def golden(self, number: int) -> Payload:
        raise IndexError(number)

    @override
    def unique(self, index: int) -> Payload:
        block = self._blocks[index % 256].copy()
        block[0] = np.uint32(index & 0x3FFFFFFF).view("<f4")
        tensors = [("INPUT", "FP32", (1, self.width), block.tobytes())]
        body, headers = infer_body(tensors, ["OUTPUT"])
        return Payload(
            self._path, body, "application/octet-stream", headers,
            expected=tensors[0][3], message=infer_message(self.model, tensors),
        )  # fmt: skip

    def check(self, payload: Payload, body: bytes) -> None:
        """Over HTTP and gRPC alike the raw output ends the answer."""
        if not body.endswith(payload.expected):
            raise WrongAnswer("OUTPUT is not INPUT")

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        return body[-self.width * 4 :]

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(reference == answer)


class EmbeddingsTensors(Workload):
    """``embeddings`` without its tokenizer: token ids of mixed lengths in, one vector out, over HTTP or gRPC."""

    name = "embeddings-tensors"
    model = "embeddings"
    width = 384
    lengths = (6, 12, 16, 24, 32, 48, 64, 96, 128)

    @override
    @property
    def goldens(self) -> int:
        return 16

    @override
    def golden(self, number: int) -> Payload:
        return self._payload(np.random.default_rng((self.seed, number)), number)

    @override
    def unique(self, index: int) -> Payload:
        return self._payload(np.random.default_rng((self.seed, self.goldens + index)), None)

    def _payload(self, numbers: np.random.Generator, golden: int | None) -> Payload:
        length = int(numbers.choice(self.lengths))
        ids = numbers.integers(1996, 20_000, (1, length)).astype("<i8")  # words of the vocabulary
        ids[0, 0], ids[0, -1] = 101, 102
        arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        tensors = [(name, "INT64", array.shape, array.tobytes()) for name, array in arrays.items()]
        outputs = ["sentence_embedding"]
        body, headers = infer_body(tensors, outputs)
        message = infer_message(self.model, tensors, outputs)
        path = f"/v2/models/{self.model}/infer"
        return Payload(path, body, "application/octet-stream", headers, golden, message=message)

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        """Over HTTP and gRPC alike the raw output ends the answer."""
        if len(body) <= self.width * 4:
            raise WrongAnswer(f"{len(body)} bytes hold no vector of {self.width} numbers")
        vector = np.frombuffer(body[-self.width * 4 :], dtype="<f4")
        norm = float(np.linalg.norm(vector))
        if not np.isfinite(norm) or norm < 1e-3:
            raise WrongAnswer(f"a vector of length {norm:g}")
        return vector / norm

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(float(reference @ answer) > 0.9999)


class RawModel(Workload):
    """Random tensors of the right shape for any model, from its metadata (``GET /v2/models/{model}``).

    Token ids lie in ``[1000, 2000)``, masks are ones, type ids zeros; a variable dimension takes one
    of ``lengths``. Answers are checked for their shape's first dimension only: this is for load on
    Triton itself (``tune``, ``why``), not for correctness.
    """

    def __init__(self, seed: int, metadata: Mapping[str, Any], lengths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__(seed)
        self.model = self.name = str(metadata["name"])
        self._path = f"/v2/models/{self.model}/infer"
        self._inputs = metadata["inputs"]
        self._outputs = [output["name"] for output in metadata["outputs"]]
        self._lengths = lengths

    @override
    @property
    def goldens(self) -> int:
        return 0

    @override
    def golden(self, number: int) -> Payload:
        raise IndexError(number)

    @override
    def unique(self, index: int) -> Payload:
        random_ = random.Random(self.seed * 1_000_003 + index)
        numbers = np.random.default_rng(random_.getrandbits(63))
        length = random_.choice(self._lengths)
        tensors = [self._tensor(spec, length, numbers) for spec in self._inputs]
        body, headers = infer_body(tensors, self._outputs)
        message = infer_message(self.model, tensors)
        return Payload(self._path, body, "application/octet-stream", headers, message=message)

    @staticmethod
    def _tensor(
        spec: Mapping[str, Any], length: int, numbers: np.random.Generator
    ) -> tuple[str, str, list[int], bytes]:
        name, datatype = str(spec["name"]), str(spec["datatype"])
        shape = [1, *(length if size < 0 else int(size) for size in spec["shape"][1:])]
        role = name.split("__", maxsplit=1)[0]
        if role == "attention_mask":
            values: Any = np.ones(shape)
        elif role == "token_type_ids":
            values = np.zeros(shape)
        elif datatype == "UINT8":
            values = numbers.integers(0, 256, shape)
        elif datatype.startswith("INT"):
            values = numbers.integers(1000, 2000, shape)
        else:
            values = numbers.standard_normal(shape)
        return name, datatype, shape, values.astype(_NUMPY[datatype]).tobytes()

    @override
    def parse(self, payload: Payload, body: bytes) -> Any:
        if not body:
            raise WrongAnswer("an empty answer")
        return len(body)

    @override
    def matches(self, reference: Any, answer: Any) -> bool:
        return bool(reference == answer)
