"""Open Inference Protocol messages: what is counted before they are parsed, and what typed contents become."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway.dialects.kserve_grpc_codec import decode_request
from gateway.dialects.kserve_grpc_wire import MAX_FIELDS, MAX_TENSOR_FIELDS, MAX_TYPED_BYTES, parse_infer
from gateway.errors import GatewayError, Invalid, Malformed, TooLarge
from gateway.triton.signature import Signature, TensorSignature
from gateway.triton.tensors import to_numpy

MANY = 100_000


def taking(datatype: str, *shape: int) -> Signature:
    """A model with one input, ``x``."""
    return Signature("m", {"x": TensorSignature("x", datatype, shape or (-1,))}, {}, 0)


def message(datatype: str, shape: tuple[int, ...], **contents: Any) -> Any:
    """An inference with typed contents."""
    made = pb.ModelInferRequest(model_name="m")
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return made


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    size, parts = len(data), []
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *parts, size]) + data


class TestWire:
    def test_messages_are_parsed_as_they_are(self) -> None:
        whole = message("FP32", (2, 3), fp32_contents=[0.5] * 6)
        whole.parameters["a"].int64_param = -1
        whole.outputs.add(name="y").parameters["classification"].int64_param = 3
        for size in (0, 100, 2**16, 2**20):  # looked through or not
            del whole.raw_input_contents[:]
            whole.raw_input_contents.append(bytes(size))
            assert parse_infer(whole.SerializeToString()) == whole

    @pytest.mark.parametrize(
        "body",
        [
            field(5, b"") * MANY,
            field(6, b"") * MANY,
            field(4, b"") * MANY,
            field(7, b"") * MANY,
            field(5, field(4, b"") * MANY),
            field(6, field(2, b"") * MANY),
            field(5, field(3, b"\x01") * MANY),
            b"\x28\x01" * MANY,
            field(5, field(5, field(8, b"") * (MAX_TYPED_BYTES // 2))),
            field(5, field(5, field(4, b"\x01" * MAX_TYPED_BYTES))),
            field(5, field(3, b"\x01" * MAX_TYPED_BYTES)),
            field(5, field(5, bytes(MAX_TYPED_BYTES // 2))) * 2,
        ],
        ids=["inputs", "outputs", "parameters", "raw contents", "parameters of an input", "parameters of an output",
             "dimensions", "what has no name", "texts", "numbers", "packed dimensions", "two inputs"],
    )  # fmt: skip
    def test_many_small_things_are_not_parsed(self, body: bytes) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                parse_infer(body)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 2**20

    def test_as_many_as_are_taken(self) -> None:
        made = pb.ModelInferRequest(model_name="m")
        for index in range(MAX_FIELDS - 2):
            made.outputs.add(name=f"{index:0100}")
        assert len(parse_infer(made.SerializeToString()).outputs) == MAX_FIELDS - 2
        tensor = made.inputs.add(name="x" * MAX_TYPED_BYTES)
        with pytest.raises(TooLarge):
            parse_infer(made.SerializeToString())
        del made.outputs[:]
        tensor.name = "x" * (MAX_TYPED_BYTES - 50_000)
        for index in range(MAX_TENSOR_FIELDS - 1):
            tensor.parameters[str(index)].bool_param = True
        assert len(parse_infer(made.SerializeToString()).inputs[0].parameters) == MAX_TENSOR_FIELDS - 1

    @pytest.mark.parametrize("padding", [0, 2**17])
    @pytest.mark.parametrize("end", [b"\xff", b"\x2a\x05ab", b"\x2a", b"\x2a" + b"\xff" * 10 + b"\x01", b"\x29\0"])
    def test_what_is_no_message(self, end: bytes, padding: int) -> None:
        with pytest.raises(Malformed):
            parse_infer(field(7, bytes(padding)) + end)


class TestTypedContents:
    @pytest.mark.parametrize(
        ("datatype", "name", "values"),
        [
            ("BOOL", "bool_contents", [True, False]), ("INT8", "int_contents", [-128, 127]),
            ("INT16", "int_contents", [-(2**15), 2**15 - 1]), ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
            ("INT64", "int64_contents", [-(2**63), 2**63 - 1]), ("UINT8", "uint_contents", [0, 255]),
            ("UINT16", "uint_contents", [0, 2**16 - 1]), ("UINT32", "uint_contents", [0, 2**32 - 1]),
            ("UINT64", "uint64_contents", [0, 2**64 - 1]), ("FP32", "fp32_contents", [0.5, -1.0]),
            ("FP64", "fp64_contents", [0.1, float("inf")]), ("BYTES", "bytes_contents", [b"", b"\xff"]),
        ],
    )  # fmt: skip
    def test_values_are_exact(self, datatype: str, name: str, values: list[Any]) -> None:
        decoded = decode_request(message(datatype, (2,), **{name: values}), taking(datatype))
        assert to_numpy(decoded.request.inputs[0]).tolist() == values

    @pytest.mark.parametrize(
        ("datatype", "contents"),
        [
            ("INT8", {"int_contents": [128, 0]}), ("UINT8", {"uint_contents": [256, 0]}), ("FP16", {}), ("BF16", {}),
            ("FP32", {"fp32_contents": [1.0]}), ("FP32", {"fp64_contents": [1.0, 2.0]}), ("NONE", {}),
            ("BYTES", {"bytes_contents": [b"a"] * 3}),
        ],
    )  # fmt: skip
    def test_what_the_type_or_the_shape_does_not_hold(self, datatype: str, contents: dict[str, Any]) -> None:
        with pytest.raises(GatewayError):
            decode_request(message(datatype, (2,), **contents), taking(datatype))

    def test_contents_that_nobody_asked_for_are_not_converted(self) -> None:
        many = 500_000
        cases = [
            (message("BYTES", (1,), bytes_contents=[b""] * many), taking("BYTES")),
            (message("BYTES", (many,), bytes_contents=[b""] * many), taking("FP32")),
            (message("UINT32", (1,), uint_contents=[1] * many), taking("UINT32")),
            (message("UINT32", (many,), uint_contents=[1] * many), taking("UINT32", 1)),
        ]
        tracemalloc.start()
        try:
            for asked, signature in cases:
                with pytest.raises(Invalid):
                    decode_request(asked, signature)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 2**20

    def test_a_hint_at_the_content_type_changes_nothing(self) -> None:
        asked = message("FP32", (2,), fp32_contents=[1.0, 2.0])
        asked.inputs[0].parameters["content_type"].string_param = "np"
        asked.outputs.add(name="y").parameters["content_type"].string_param = "np"
        decoded = decode_request(asked, taking("FP32"))
        assert np.array_equal(to_numpy(decoded.request.inputs[0]), [1.0, 2.0])
        asked.inputs[0].parameters["other"].string_param = "np"
        with pytest.raises(Invalid, match="parameters of inputs"):
            decode_request(asked, taking("FP32"))
