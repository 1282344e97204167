"""Open Inference Protocol bodies, decoded and encoded."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.dialects.kserve_codec import Encoding, OutputForm, classify, decode_infer, encode_infer, raw_data
from gateway.dialects.kserve_http import decode_generate
from gateway.errors import GatewayError, Invalid, Malformed
from gateway.triton.signature import Signature, TensorSignature
from gateway.triton.tensors import from_numpy, to_numpy
from gateway.types import InferenceRequest, InferenceResult, Tensor

SIGNATURE = Signature(
    "m", {"x": TensorSignature("x", "FP32", (-1, 4))}, {"y": TensorSignature("y", "FP32", (-1, 4))}, 8
)
TEXT = Signature("t", {"s": TensorSignature("s", "BYTES", (-1, 1))}, {}, 8)
OPEN = Signature("o", {"x": TensorSignature("x", "INT64", (-1, -1))}, {}, 8)


def taking(datatype: str, *shape: int, name: str = "x") -> Signature:
    """A model with one input."""
    return Signature("m", {name: TensorSignature(name, datatype, shape or (-1, 4))}, {}, 8 if not shape else 0)


def decode(body: Any, header_length: str | None = None, signature: Signature = SIGNATURE) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_infer("m", "", raw, header_length, signature)


def an_input(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5, 3, 4]], [[1, 2.5], [3, 4]]])
def test_json_data_may_be_nested_or_flat(data: Any) -> None:
    decoded = decode({"id": "7", "inputs": [an_input(data=data)]})
    assert decoded.request.id == "7"
    assert to_numpy(decoded.request.inputs[0]).tolist() == [[1.0, 2.5, 3.0, 4.0]]
    assert decoded.encoding.of("y") == OutputForm(binary=False)


def test_binary_and_json_tensors_mix() -> None:
    header = json.dumps(
        {
            "inputs": [
                {"name": "a", "shape": [2], "datatype": "INT16", "parameters": {"binary_data_size": 4}},
                {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["水"]},
                {"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
            ],
            "outputs": [
                {"name": "y", "parameters": {"binary_data": True}},
                {"name": "z", "parameters": {"classification": 2}},
            ],
        }
    ).encode()
    signature = taking("BYTES", 1, name="b")
    decoded = decode(header + b"\x01\0\x02\0" + b"\x02\0\0\0ab", str(len(header)), signature)
    a, b, c = decoded.request.inputs
    assert to_numpy(a).tolist() == [1, 2]
    assert to_numpy(b).tolist() == ["水".encode()]
    assert to_numpy(c).tolist() == [b"ab"]
    assert decoded.request.outputs == ("y", "z")
    assert decoded.encoding.of("y").binary
    assert decoded.encoding.of("z") == OutputForm(binary=False, classes=2)


def test_a_raw_body_is_the_only_tensor() -> None:
    decoded = decode(np.arange(4, dtype="<f4").tobytes(), "0")
    assert decoded.request.inputs[0].shape == (1, 4)
    assert decoded.encoding.of("anything").binary
    text = decode("水".encode(), "0", TEXT)
    assert to_numpy(text.request.inputs[0]).tolist() == [["水".encode()]]
    assert decode(b"\0" * 24, "0", OPEN).request.inputs[0].shape == (1, 3)


@pytest.mark.parametrize(
    ("body", "header_length", "error"),
    [
        (b"", None, Malformed),
        (b"{", None, Malformed),
        (b"[]", None, Invalid),
        (b"{}", None, Invalid),
        (b'{"inputs":[]} x', None, Malformed),
        (b'{"inputs":[],"inputs":[]}', None, Malformed),
        (b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[NaN]}]}', None, Malformed),
        (b"[" * 250_000, None, Malformed),
        (b'{"inputs":' + b"[" * 120 + b"]" * 120 + b"}", None, Malformed),
        (b"{}", "99999999999", Malformed),
        (b"{}", "-1", Malformed),
        (b"{}", "two", Malformed),
        (b"{}", "3", Malformed),
        ({"inputs": [an_input(shape=[1.0, 4])]}, None, Invalid),
        ({"inputs": [an_input(shape=[True, 4])]}, None, Invalid),
        ({"inputs": [an_input(shape=[-1, 4])]}, None, Invalid),
        ({"inputs": [an_input(shape=[0, 4], data=[])]}, None, Invalid),
        ({"inputs": [an_input(datatype="FP99")]}, None, Invalid),
        ({"inputs": [an_input(datatype="BF16")]}, None, Invalid),
        ({"inputs": [an_input(data=["a", "b", "c", "d"])]}, None, Invalid),
        ({"inputs": [an_input(data=[[1], [2, 3]])]}, None, Invalid),
        ({"inputs": [an_input(data=[{}])]}, None, Invalid),
        ({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32"}]}, None, Invalid),
        ({"inputs": [an_input(parameters={"shared_memory_region": "r"})]}, None, Invalid),
        ({"inputs": [an_input(parameters={"binary_data_size": 16})]}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"sequence_id": 1}}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"triton_enable_empty_final_response": True}}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"headers": "x"}}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"timeout": -1}}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"priority": "high"}}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"mine": [1]}}, None, Invalid),
        ({"inputs": [an_input()], "parameters": {"binary_data_output": 1}}, None, Invalid),
        ({"inputs": [an_input()], "outputs": [{"name": "y"}, {"name": "y"}]}, None, Invalid),
        ({"inputs": [an_input()], "outputs": [{"name": "y", "parameters": {"classification": 2**31}}]}, None, Invalid),
        (
            {"inputs": [an_input()], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            None,
            Invalid,
        ),
        ({"inputs": [an_input()], "unknown": 1}, None, Invalid),
        ({"inputs": [an_input()], "model_name": "other"}, None, Invalid),
        ({"inputs": [an_input()], "model_name": 1}, None, Invalid),
    ],
)
def test_bad_bodies_are_the_callers_error(body: Any, header_length: str | None, error: type[GatewayError]) -> None:
    with pytest.raises(error):
        decode(body, header_length)


@pytest.mark.parametrize("size", [-1, 3, 17, 2**60])
def test_binary_sizes_must_fit(size: int) -> None:
    header = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}}]}
    )
    with pytest.raises((Invalid, Malformed)):
        decode(header.encode() + b"\0" * 16, str(len(header)))


def test_priority_timeout_and_own_parameters_are_taken() -> None:
    decoded = decode({"inputs": [an_input()], "parameters": {"priority": 2, "timeout": 5000, "mine": "x", "n": 3}})
    assert decoded.request.priority == 2
    assert decoded.timeout_us == 5000
    assert decoded.request.parameters == {"mine": "x", "n": 3}


def test_large_unsigned_values_are_exact() -> None:
    values = [2**64 - 1, 0, 1, 2**63]
    decoded = decode({"inputs": [an_input(datatype="UINT64", data=values)]}, None, taking("UINT64"))
    assert to_numpy(decoded.request.inputs[0]).reshape(-1).tolist() == values


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [1, True, 0.5, 2]),
        ("FP32", [[1, 2], [True, 3]]),
        ("FP32", [1, None, 2, 3]),
        ("FP32", [1, 2, 3, [4]]),
        ("FP32", [1, 2, 3, 1e39]),
        ("FP16", [1, 2, 3, 70_000]),
        ("FP64", [1, 2, 3, 10**300 * 10**300]),
        ("INT8", [1, 2, 3, 200]),
        ("INT8", [1, 2, 3, 1.5]),
        ("INT8", [1, 2, 3, False]),
        ("INT64", [1, 2, 3, 2**63]),
        ("UINT8", [1, 2, 3, 300]),
        ("UINT8", [1, 2, 3, -1]),
        ("UINT64", [1, 2, 3, 2**64]),
        ("UINT64", [2**63, 2, 3, -1]),
        ("BOOL", [1, 0, 1, 0]),
        ("BYTES", ["a", "b", "c", 1]),
        ("BYTES", ["a", "b", ["c", "d"]]),
        ("BYTES", ["abcd"]),
        ("BF16", [1, 2, 3, 4]),
    ],
)
def test_values_that_the_type_does_not_hold(datatype: str, data: list[Any]) -> None:
    with pytest.raises(Invalid):
        decode({"inputs": [an_input(datatype=datatype, data=data)]}, None, taking(datatype))


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP16", [1, 2.5, -3, 0]), ("FP32", [1, 2.5, -3, 0]), ("FP64", [0.1, 2, 3, 1e300]), ("BOOL", [True, False] * 2),
        ("INT8", [-128, 127, 0, 1]), ("INT64", [-(2**63), 2**63 - 1, 0, 1]), ("UINT8", [0, 255, 1, 2]),
        ("UINT32", [0, 2**32 - 1, 1, 2]),
    ],
)  # fmt: skip
def test_values_that_it_holds_are_exact(datatype: str, data: list[Any]) -> None:
    for nested in (data, [data], [data[:2], data[2:]], [[[value]] for value in data]):
        decoded = decode({"inputs": [an_input(datatype=datatype, data=nested)]}, None, taking(datatype))
        assert to_numpy(decoded.request.inputs[0]).reshape(-1).tolist() == data


@pytest.mark.parametrize("written", ["0.5,", '"ab",', '"",', "[1],"])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_data_that_nobody_asked_for_is_not_converted(written: str, datatype: str) -> None:
    """Half a million values for a shape of four: nothing is made of them but what JSON itself says."""
    body = an_input(datatype=datatype, data=None)
    head = json.dumps({"inputs": [body]}).encode().replace(b"null", b"[" + (written * 500_000)[:-1].encode() + b"]")
    decoded = json.loads(head)["inputs"][0]["data"]
    tracemalloc.start()
    try:
        with pytest.raises(Invalid, match="500000 values, its shape says 4"):
            raw_data(decoded, datatype, "x", 4)
        with pytest.raises(Invalid, match="the model takes INT64"):
            OPEN.expect("x", datatype, (1, 4))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * 2**20
    with pytest.raises(Invalid, match="500000 values"):
        decode(head, None, taking(datatype))


def test_what_kserves_own_client_writes_is_taken() -> None:
    """``InferRequest.to_rest`` names the model in the body; null is a member that is not there."""
    tensor = an_input(parameters={"content_type": "np"})
    output = {"name": "y", "parameters": {"content_type": "np", "binary_data": True}}
    for body in (
        {"id": "1", "model_name": "m", "inputs": [tensor], "outputs": [output]},
        {"id": None, "model_name": None, "parameters": None, "outputs": None, "inputs": [an_input(parameters=None)]},
        {"inputs": [an_input()], "outputs": [{"name": "y", "parameters": None}]},
        {"inputs": [an_input()], "parameters": {"content_type": "np"}},
    ):
        decoded = decode(body)
        assert to_numpy(decoded.request.inputs[0]).tolist() == [[1.0, 2.0, 3.0, 4.0]]
        assert decoded.request.id == (body.get("id") or "")
    with pytest.raises(Invalid, match="model_name"):
        decode({"model_name": "other", "inputs": [an_input()]})


def test_generate_takes_exactly_the_values_of_the_type() -> None:
    def generate(value: Any, datatype: str = "UINT8", **more: Any) -> Any:
        body = json.dumps({"x": value, **more}).encode()
        return decode_generate("m", "", body, taking(datatype, -1))

    request, timeout_us = generate([1, 2, 255], id="7", timeout=5_000)
    assert to_numpy(request.inputs[0]).tolist() == [1, 2, 255]
    assert (request.id, timeout_us) == ("7", 5_000)
    assert to_numpy(generate(7)[0].inputs[0]).tolist() == [7]
    assert to_numpy(generate(["a", "水"], "BYTES")[0].inputs[0]).tolist() == [b"a", "水".encode()]
    for value in (300, -1, 1.5, "a", True, None, [1], 10**30):
        with pytest.raises(Invalid):
            generate([value] * 3)
        with pytest.raises(Invalid):
            generate([1, value])


def encode(result: InferenceResult, encoding: Encoding, **request: Any) -> tuple[Any, bytes, int | None]:
    body, length = encode_infer(result, InferenceRequest("m", (), **request), encoding, lambda _: (), batched=True)
    header = body if length is None else body[:length]
    return msgspec.json.decode(header), body[len(header) :], length


def test_answers_are_json_or_binary_as_asked() -> None:
    result = InferenceResult(
        "m", "1", (from_numpy("a", np.array([[1.5, np.nan]])), Tensor("b", "BYTES", (1,), b"\x02\0\0\0\xff!"))
    )
    message, tail, length = encode(result, Encoding(), id="7")
    assert length is None
    assert message["id"] == "7"
    assert message["outputs"][0]["data"] == [1.5, None]
    assert message["outputs"][1]["data"] == ["\ufffd!"]
    message, tail, length = encode(result, Encoding(OutputForm(binary=False), {"b": OutputForm(binary=True)}))
    assert "id" not in message
    assert length is not None
    assert tail == b"\x02\0\0\0\xff!"
    assert message["outputs"][1]["parameters"] == {"binary_data_size": 6}


def test_classification_is_tritons() -> None:
    scores = from_numpy("y", np.array([[0.5, 2.0, 1.0], [3.0, 0.0, 3.0]], dtype=np.float32))
    best = classify(scores, 2, ("a", "b"), batched=True)
    assert best.shape == (2, 2)
    assert to_numpy(best).reshape(-1).tolist() == [b"2.000000:1:b", b"1.000000:2", b"3.000000:0:a", b"3.000000:2"]
    assert classify(scores, 99, (), batched=True).shape == (2, 3)


@pytest.mark.parametrize(
    ("datatype", "values", "order"),
    [
        ("<i8", [2**53, 2**53 + 1, 0, -(2**63)], [1, 0, 2, 3]),
        ("<u8", [2**64 - 2, 2**64 - 1, 0, 1], [1, 0, 3, 2]),
        ("<i1", [-128, 127, 127, -128], [1, 2, 0, 3]),
        ("?", [False, True, False, True], [1, 3, 0, 2]),
        ("<f8", [1.0, np.nan, np.inf, 1.0], [2, 0, 3, 1]),
        ("<f2", [1.0, -np.inf, 2.0, 1.0], [2, 0, 3, 1]),
    ],
)
def test_ranks_are_exact_in_every_type(datatype: str, values: list[Any], order: list[int]) -> None:
    scores = from_numpy("y", np.array([values, values[::-1]], dtype=datatype))
    ranked = to_numpy(classify(scores, 4, (), batched=True))[0].tolist()
    assert [int(text.split(b":")[1]) for text in ranked] == order


def binary(values: list[float], size: int = 16, **changes: Any) -> tuple[bytes, str]:
    """A body with one binary tensor, and the length of its JSON."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor], **changes}).encode()
    return header + np.array(values, "<f4").tobytes(), str(len(header))


def test_a_header_that_was_seen_before_goes_with_other_tensors() -> None:
    for values in ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]):
        decoded = decode(*binary(values, parameters={"temperature": 0.5}))
        assert to_numpy(decoded.request.inputs[0]).tolist() == [values]
        assert decoded.request.parameters == {"temperature": 0.5}


def test_a_header_that_was_right_is_not_right_for_every_body() -> None:
    body, length = binary([1.0, 2.0, 3.0, 4.0])
    decode(body, length)
    with pytest.raises(Malformed, match="before the tensor 'x'"):
        decode(body[:-1], length)
    with pytest.raises(Malformed, match="1 bytes follow"):
        decode(body + b"\0", length)
    decode(body, length)


def test_a_header_that_was_wrong_stays_wrong() -> None:
    body, length = binary([1.0, 2.0, 3.0, 4.0], size=-1)
    for _ in range(2):
        with pytest.raises(Invalid, match="not a size"):
            decode(body, length)
