"""Hostile payloads: tensors that are not what they say, and parameters that nobody may send (rows 38 to 47)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from tests.live.hostile.invariants import Case, Invariants
from tests.live.hostile.payload import (
    ENDPOINTS,
    INFER,
    ROW,
    Sender,
    infer_body,
    message,
    sender,
    tensor,
)

pytestmark = pytest.mark.live

INVALID = grpc.StatusCode.INVALID_ARGUMENT
HUGE = 2**60 + 2
BINARY = "application/octet-stream"


@pytest.fixture(scope="module")
def send(invariants: Invariants) -> Iterator[Sender]:
    with sender(invariants.gateway) as opened:
        yield opened


SHAPES: tuple[list[int], ...] = (
    [16, HUGE], [4, HUGE], [HUGE, 64], [2**31, 2**31], [2**62, 4], [2**63 - 1, 64], [1, 2**63], [2**64, 64],
    [10**30, 64], [1, -64], [-1, 64], [-1, -64], [0, 64], [1, 0], [], [64], [1, 1, 64], [1] * 200, [1] * 100_000,
    [65, 64], [2, 64], [1, 65], [1, 63],
)  # fmt: skip


class TestShapes:
    """Rows 38, 39 and 43."""

    def test_numbers(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """Over HTTP as JSON and as binary data, and over gRPC as far as its int64 can say it."""
        with invariants.case() as case:
            for shape in SHAPES:
                with subtests.test(shape=str(shape)[:60]):
                    case.refused(send.post(INFER, infer_body(tensor(shape=shape))), 422, "oip")
                    case.refused(send.binary(tensor(shape=shape), bytes(256)), 422, "oip")
                    if all(size < 2**63 for size in shape):
                        case.grpc_refused(send.infer(message(shape)), INVALID)
                        (streamed,) = send.stream(message(shape))
                        assert streamed.error_message

    def test_what_is_no_number(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for shape in ([1.5, 64], [1.0, 64], [True, 64], ["1", 64], [None], [[1, 64]], "1,64", 64, {}):
                with subtests.test(shape=shape):
                    case.refused(send.post(INFER, infer_body(tensor(shape=shape))), 422, "oip")

    def test_batches(self, invariants: Invariants, send: Sender) -> None:
        """Empty ones, and more than a call may have, where a dialect has batches."""
        many = ["a"] * 257
        with invariants.case() as case:
            case.refused(send.post(INFER, infer_body(tensor(shape=[65, 64], data=ROW * 65))), 422, "oip")
            case.refused(send.post(INFER, {"inputs": []}), 422, "oip")
            case.grpc_refused(send.infer(message((65, 64), raw=bytes(65 * 256))), INVALID)
            for batch in ([], many):
                case.refused(send.post("/hf/models/sentiment", {"inputs": batch}), 422, "hf")
                case.refused(send.post("/v1/embeddings", {"model": "embeddings", "input": batch}), 422, "openai")
                case.refused(send.post("/tei/embeddings/embed", {"inputs": batch}), {400, 422}, "tei")
                case.refused(send.post("/tei/sentiment/predict", {"inputs": [[x] for x in batch]}), {400, 422}, "tei")
                case.refused(send.post("/tei/embeddings/rerank", {"query": "a", "texts": batch}), {400, 422}, "tei")


CHANGES: tuple[dict[str, Any], ...] = (
    {"data": []}, {"data": ROW[1:]}, {"data": [*ROW, 1]}, {"data": [ROW, ROW]}, {"data": None},
    {"data": [ROW[:32], ROW[:31]]}, {"data": [[1], 2]}, {"data": {}}, {"data": "AAAA"}, {"data": 1},
    {"data": ["1"] * 64}, {"data": [None] * 64}, {"data": [True] * 64}, {"data": [True, *ROW[1:]]}, {"data": [{}] * 64},
    {"data": [1e39] * 64}, {"data": [10**300] * 64},
    {"datatype": "FP64"}, {"datatype": "fp32"}, {"datatype": "BYTES"}, {"datatype": ""}, {"datatype": "FP32 "},
    {"datatype": 1}, {"datatype": None}, {"datatype": "X" * 100_000}, {"name": None}, {"name": 1}, {"name": ""},
    {"name": "WRONG"}, {"name": "INPUT\x00"}, {"name": "I" * 100_000}, {"extra": 1}, {"shape": None},
    {"parameters": []}, {"parameters": {"binary_data_size": 256}},
    {"data": None, "parameters": {"binary_data_size": -1}},
    {"data": None, "parameters": {"binary_data_size": 1.5}},
    {"data": None, "parameters": {"binary_data_size": "256"}},
    {"data": None, "parameters": {"binary_data_size": True}},
    {"data": None, "parameters": {"binary_data_size": None}},
    {"data": None, "datatype": "BF16", "parameters": {"binary_data_size": 0}},
)  # fmt: skip
REQUESTS: tuple[dict[str, Any], ...] = (
    {}, {"inputs": {}}, {"inputs": None}, {"inputs": [1]}, {"inputs": [[]]}, {"inputs": "a"},
    infer_body(tensor(), tensor()), infer_body(tensor(), tensor(name="EXTRA")), infer_body(*[tensor()] * 1_000),
    infer_body(outputs=[{"name": "OUTPUT"}] * 2), infer_body(outputs=[{"name": "NOTHING"}]),
    infer_body(outputs=[{"name": f"O{i}"} for i in range(100_000)]), infer_body(outputs={}),
    infer_body(outputs=["OUTPUT"]), infer_body(outputs=[{}]), infer_body(outputs=[{"name": 1}]),
    infer_body(outputs=[{"name": "OUTPUT", "shape": [1]}]), infer_body(id=1), infer_body(id=["a"]),
    infer_body(parameters=[]), infer_body(parameters="a"), infer_body(model_name="digits"), infer_body(x=1),
    infer_body(model_name=""), infer_body(model_name=["identity"]), infer_body(model_version="1"),
)  # fmt: skip
VALUES: tuple[tuple[str, list[Any]], ...] = (
    ("INT64", [2**63]), ("INT64", [-(2**63) - 1]), ("INT64", [1.5]), ("INT64", [True]), ("INT64", ["1"]),
    ("INT32", [2**31]), ("FP32", [True]), ("UINT64", [-1]), ("UINT64", [2**64]), ("BOOL", [1]), ("BYTES", [1]),
    ("BYTES", [None]),
)  # fmt: skip


class TestTensors:
    """Rows 41 and 42."""

    def test_input(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for change in CHANGES:
                with subtests.test(change=str(change)[:60]):
                    case.refused(send.post(INFER, infer_body(tensor(**change))), 422, "oip")
            case.refused(send.post(INFER, infer_body(tensor(data=[10**400] * 64))), {400, 422}, "oip")

    def test_request(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for body in REQUESTS:
                with subtests.test(body=str(body)[:60]):
                    case.refused(send.post(INFER, body), 422, "oip")

    def test_values_that_the_type_does_not_hold(
        self, invariants: Invariants, send: Sender, subtests: pytest.Subtests
    ) -> None:
        path = "/v2/models/sentiment/infer"
        mask = {"name": "attention_mask", "shape": [1, 1], "datatype": "INT64", "data": [1]}
        with invariants.case() as case:
            for datatype, values in VALUES:
                with subtests.test(datatype=datatype, values=values):
                    tokens = {"name": "input_ids", "shape": [1, 1], "datatype": datatype, "data": values}
                    case.refused(send.post(path, infer_body(tokens, mask)), 422, "oip")
                    case.refused(send.post(path, infer_body(mask, tokens)), 422, "oip")

    def test_generate(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        """``sentiment`` takes INT64: nothing is wrapped around or cut off, and right values of that form are taken."""
        good = {"input_ids": [101, 2204, 102], "attention_mask": [1] * 3}
        with invariants.case(usage={"completed": 2}) as case:
            for path in ("generate", "generate_stream"):
                answer = send.post(f"/v2/models/sentiment/{path}", good)
                assert case.see(answer).status_code == 200, answer.text
                for value in (2**63, -(2**63) - 1, 1.5, "a", True, None, [1], 10**30):
                    with subtests.test(value=value, path=path):
                        body = good | {"input_ids": [101, value, 102]}
                        answer = case.refused(send.post(f"/v2/models/sentiment/{path}", body), 422, "oip")
                        assert "input_ids" in answer.text

    def test_grpc(self, invariants: Invariants, send: Sender) -> None:
        """The same over gRPC, and what only its messages can say."""
        short, long, none, both = message(raw=bytes(255)), message(raw=bytes(257)), message(raw=None), message()
        both.inputs[0].contents.fp32_contents.extend(ROW)
        two = message()
        two.raw_input_contents.append(b"")
        twice, extra = message(), message()
        for other, name in ((twice, "INPUT"), (extra, "EXTRA")):
            other.inputs.add(name=name, datatype="FP32", shape=(1, 64))
            other.raw_input_contents.append(bytes(256))
        wrong_contents = message(raw=None)
        wrong_contents.inputs[0].contents.int64_contents.extend([1] * 64)
        empty = message()
        del empty.inputs[:], empty.raw_input_contents[:]
        outputs, repeated = message(), message()
        outputs.outputs.add(name="NOTHING")
        for _ in range(2):
            repeated.outputs.add(name="OUTPUT")
        cases = [
            short, long, none, two, twice, extra, wrong_contents, empty, outputs, repeated, message(datatype="FP64"),
            message(datatype="fp32"), message(datatype="\x00"), message(name="WRONG"), message(name="I" * 100_000),
            both,
        ]  # fmt: skip
        with invariants.case() as case:
            for bad in cases:
                case.grpc_refused(send.infer(bad), INVALID)
            answers = send.stream(*cases)
            assert [bool(answer.error_message) for answer in answers] == [True] * len(cases)

    def test_grpc_values_out_of_range(self, invariants: Invariants, send: Sender) -> None:
        bad = message((1, 28, 28, 1), "UINT8", raw=None)
        bad.model_name = "digits"
        bad.inputs[0].name = send.http.get("/v2/models/digits").json()["inputs"][0]["name"]
        with invariants.case() as case:
            bad.inputs[0].contents.uint_contents.extend([300] * 784)
            case.grpc_refused(send.infer(bad), INVALID)


LENGTHS = (
    "99999999999", "9" * 400, "9" * 5_000, "-1", "-0", "+5", "0x10", "1e3", "1.0", "", "a", "٣", "5, 5", "5;", "1_0",
    "true",
)  # fmt: skip


class TestHeaderLength:
    """Row 44: Inference-Header-Content-Length."""

    def test_no_length(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        body = json.dumps(infer_body()).encode()
        with invariants.case() as case:
            for length in LENGTHS:
                for path in (INFER, "/v2/models/identity/versions/1/infer"):
                    with subtests.test(length=length[:20], path=path):
                        headers = [(b"inference-header-content-length", length.encode())]
                        case.refused(send.http.post(path, content=body, headers=headers), 400, "oip")

    def test_a_length_that_is_not_the_json(self, invariants: Invariants, send: Sender) -> None:
        head = json.dumps(infer_body(tensor(data=None, parameters={"binary_data_size": 256}))).encode()
        whole = head + bytes(256)
        with invariants.case() as case:
            for length in (1, len(head) - 1, len(head) + 1, len(whole), len(whole) + 1):
                answer = send.post(INFER, whole, Inference_Header_Content_Length=str(length))
                case.refused(answer, 400, "oip")
            for body in (whole[:-1], whole + b"x", head):
                answer = send.post(INFER, body, Inference_Header_Content_Length=str(len(head)))
                case.refused(answer, 400, "oip")
            for size in (0, 4, 255, 257, 65 * 256):  # the body is the tensor
                answer = send.post(INFER, bytes(size), Inference_Header_Content_Length="0")
                case.refused(answer, 422, "oip")

    def test_elsewhere_it_means_nothing(self, invariants: Invariants, send: Sender) -> None:
        others = [endpoint for endpoint in ENDPOINTS if not endpoint.path.endswith("/infer")]
        with invariants.case(usage={"completed": len(others)}) as case:
            for endpoint in others:
                answer = send.post(endpoint.path, endpoint.good, Inference_Header_Content_Length="99999999999")
                assert case.see(answer).status_code == 200, answer.text


RESERVED = (
    "sequence_id", "sequence_start", "sequence_end", "sequence_x", "shared_memory_region", "shared_memory_offset",
    "shared_memory_byte_size", "headers", "triton_enable_empty_final_response", "triton_final_response", "triton_x",
)  # fmt: skip


class TestParameters:
    """Rows 45 and 46."""

    def test_reserved(self, invariants: Invariants, send: Sender, subtests: pytest.Subtests) -> None:
        with invariants.case() as case:
            for name in RESERVED:
                with subtests.test(name=name):
                    self.refused_everywhere(case, send, name)

    def refused_everywhere(self, case: Case, send: Sender, name: str) -> None:
        bad = message()
        bad.parameters[name].int64_param = 1
        for value in (1, True, "a", {}, None):
            case.refused(send.post(INFER, infer_body(parameters={name: value})), 422, "oip")
            for path in ("generate", "generate_stream"):
                for body in ({"INPUT": ROW, "parameters": {name: value}}, {"INPUT": ROW, name: value}):
                    case.refused(send.post(f"/v2/models/identity/{path}", body), 422, "oip")
        case.grpc_refused(send.infer(bad), INVALID)
        if name != "triton_enable_empty_final_response":  # which streams are for
            (streamed,) = send.stream(bad)
            assert streamed.error_message
        for path, field, dialect in (
            ("/hf/models/sentiment", "inputs", "hf"), ("/tei/embeddings/embed", "inputs", "tei"),
        ):  # fmt: skip
            case.refused(send.post(path, {field: "a", "parameters": {name: 1}}), {400, 422}, dialect)
        case.refused(send.post("/v1/embeddings", {"model": "embeddings", "input": "a", name: 1}), 422, "openai")

    @pytest.mark.parametrize("name", ["priority", "timeout"])
    def test_priority_and_timeout(self, invariants: Invariants, send: Sender, name: str) -> None:
        with invariants.case(usage={"completed": 3}) as case:
            for value in (-1, 1.5, "1", True, None, 2**64, [], {}):
                case.refused(send.post(INFER, infer_body(parameters={name: value})), 422, "oip")
            for good in (0, 30_000_000):
                answer = send.post(INFER, infer_body(parameters={name: good}))
                assert case.see(answer).status_code == 200, answer.text
            bad, fine = message(), message()
            bad.parameters[name].int64_param = -1
            fine.parameters[name].int64_param = 30_000_000
            case.grpc_refused(send.infer(bad), INVALID)
            assert send.infer(fine).model_name == "identity"

    def test_the_protocols_own(self, invariants: Invariants, send: Sender) -> None:
        with invariants.case(usage={"completed": 3}) as case:
            for value in (1, "true", None, []):
                case.refused(send.post(INFER, infer_body(parameters={"binary_data_output": value})), 422, "oip")
                outputs = [{"name": "OUTPUT", "parameters": {"binary_data": value}}]
                case.refused(send.post(INFER, infer_body(outputs=outputs)), 422, "oip")
            for body in (
                infer_body(parameters={"binary_data_output": True}),
                infer_body(outputs=[{"name": "OUTPUT", "parameters": {"binary_data": True}}]),
                infer_body(parameters={"colour": "red", "size": 1, "bright": True, "share": 0.5}),
            ):
                answer = send.post(INFER, body)
                assert case.see(answer).status_code == 200, answer.text
            for value in ([], {}, None, 2**63, -(2**63) - 1, 2**64, 10**400):
                case.refused(send.post(INFER, infer_body(parameters={"colour": value})), 422, "oip")

    def test_what_no_parameter_holds_spoils_nobodys_batch(self, invariants: Invariants, send: Sender) -> None:
        """Numbers that gRPC can say and Triton cannot; alone, and while others wait for the same model."""
        bad = message()
        bad.parameters["size"].uint64_param = 2**64 - 1
        infinite = message()
        infinite.parameters["share"].double_param = float("nan")
        with invariants.case(usage={"completed": 40}) as case, ThreadPoolExecutor(8) as threads:
            good = [threads.submit(send.infer, message()) for _ in range(40)]
            for refused in [threads.submit(send.infer, each) for each in (bad, infinite) * 10]:
                case.grpc_refused(refused.result(), INVALID)
            assert {each.result().model_name for each in good} == {"identity"}

    @pytest.mark.parametrize(
        "parameters",
        [
            {"shared_memory_region": "r", "shared_memory_byte_size": 256}, {"shared_memory_offset": 1}, {"x": 1},
            {"classification": 2**31}, {"classification": 2**63}, {"classification": -1}, {"classification": 1.5},
            {"classification": "3"}, {"classification": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_of_tensors(self, invariants: Invariants, send: Sender, parameters: dict[str, Any]) -> None:
        with invariants.case() as case:
            body = infer_body(outputs=[{"name": "OUTPUT", "parameters": parameters}])
            case.refused(send.post(INFER, body), 422, "oip")
            case.refused(send.post(INFER, infer_body(tensor(parameters=parameters))), 422, "oip")
            if parameters.get("classification") != 2**63:
                of_output, of_input = message(), message()
                output = of_output.outputs.add(name="OUTPUT")
                for target in (output, of_input.inputs[0]):
                    for name, value in parameters.items():
                        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
                        setattr(target.parameters[name], kind[type(value)], value)
                for bad in (of_output, of_input):
                    case.grpc_refused(send.infer(bad), INVALID)


class TestNotFinite:
    """Row 47: NaN and infinities are numbers of FP32 and travel as binary data; JSON has none, there they are null."""

    VALUES = np.array([[np.nan, np.inf, -np.inf, 1.0] + [0.0] * 60], np.float32)

    def test_binary_in_json_out(self, invariants: Invariants, send: Sender) -> None:
        with invariants.case(usage={"completed": 1}) as case:
            answer = send.binary(tensor(), self.VALUES.tobytes())
            body = json.loads(case.see(answer).content, parse_constant=pytest.fail)
            assert body["outputs"][0]["data"][:4] == [None, None, None, 1.0]

    def test_binary_in_and_out(self, invariants: Invariants, send: Sender) -> None:
        with invariants.case(usage={"completed": 2}) as case:
            raw = send.post(INFER, self.VALUES.tobytes(), Inference_Header_Content_Length="0")
            assert case.see(raw).content.endswith(self.VALUES.tobytes())
            reply = send.infer(message(raw=self.VALUES.tobytes()))
            assert reply.raw_output_contents[0] == self.VALUES.tobytes()

    def test_classified(self, invariants: Invariants, send: Sender) -> None:
        outputs = [{"name": "OUTPUT", "parameters": {"classification": 64}}]
        with invariants.case(usage={"completed": 1}) as case:
            answer = send.binary(tensor(), self.VALUES.tobytes(), outputs=outputs)
            classes = json.loads(case.see(answer).content, parse_constant=pytest.fail)["outputs"][0]["data"]
            assert (classes[0], classes[1]) == ("inf:1", "1.000000:3")

    def test_json_in(self, invariants: Invariants, send: Sender) -> None:
        with invariants.case() as case:
            for constant in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
                body = json.dumps(infer_body()).encode().replace(b"0.5", constant, 1)
                case.refused(send.post(INFER, body), 400, "oip")

    def test_no_dialect_answers_one(self, invariants: Invariants, send: Sender) -> None:
        """A text's scores and vectors are finite whatever it says."""
        with invariants.case(usage={"completed": 4}) as case:
            for path, body in (
                ("/hf/models/sentiment", {"inputs": "NaN Infinity"}),
                ("/hf/models/sentiment", {"inputs": "x", "parameters": {"function_to_apply": "none"}}),
                ("/v1/embeddings", {"model": "embeddings", "input": "NaN", "encoding_format": "float"}),
                ("/tei/sentiment/predict", {"inputs": "NaN", "raw_scores": True}),
            ):
                answer = case.see(send.post(path, body))
                json.loads(answer.content, parse_constant=pytest.fail)
                assert answer.status_code == 200
                assert b"null" not in answer.content


def test_bytes_tensors_that_lie(invariants: Invariants, send: Sender) -> None:
    """Lengths of BYTES elements are looked at before the datatype is refused, or after: never past the end."""
    with invariants.case() as case:
        for lying in (struct.pack("<I", 2**32 - 1), b"\x01", struct.pack("<I", 5) + b"abc", b""):
            bad = message((1, 64), "BYTES", raw=lying)
            case.grpc_refused(send.infer(bad), INVALID)
