"""The Open Inference Protocol through the gateway and at Triton itself: every test runs with all of
``tritonclient``'s clients at both, and expects the same of both.

Where the two differ on purpose the test says so: the gateway's status codes tell the caller's mistakes
from the server's, and Triton's own texts never leave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from embedded.launcher import serving
from tests.embedded.repository import ALL_ONNX
from tests.embedded.test_onnx_backend import VALUES
from tests.live.oip_clients import KINDS, Client, Target, texts
from tests.live.oip_gateway import Gateway
from tests.live.oip_repository import LABELS, MODELS, build

pytestmark = pytest.mark.live

LEFT = np.array([[1.0, 2.0, 4.0, 3.0], [5.0, 1.0, 2.0, 0.5]], np.float32)
RIGHT = np.array([[10.0, 10.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
HTTP_KINDS = ("http", "http.aio")
GRPC_KINDS = ("grpc", "grpc.aio")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory, poll: Callable[..., None]) -> Iterator[dict[str, Target]]:
    """A Triton with small models, and a gateway in front of it."""
    folder = tmp_path_factory.mktemp("oip")
    models = build(folder / "models")
    with serving(models, folder / "triton", MODELS) as triton, Gateway(folder, models, triton.grpc_url, poll) as gate:
        yield {"gateway": gate, "triton": Target("triton", triton.http_url, triton.grpc_url)}


@pytest.fixture(scope="module")
def clients(targets: dict[str, Target]) -> Iterator[Callable[[str, str], Client]]:
    """Clients by kind and target, each made once."""
    loop = asyncio.new_event_loop()
    made: dict[tuple[str, str], Client] = {}

    def get(kind: str, target: str) -> Client:
        if (kind, target) not in made:
            made[kind, target] = Client(kind, targets[target], loop)
        return made[kind, target]

    yield get
    for client in made.values():
        client.close()
    loop.run_until_complete(asyncio.sleep(0.05))  # aiohttp closes its sockets in the next turn
    loop.close()


@pytest.fixture(params=["gateway", "triton"])
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, target: str, clients: Callable[[str, str], Client]) -> Client:
    """Each kind of client at each target."""
    return clients(request.param, target)


@pytest.fixture(params=HTTP_KINDS)
def http(request: pytest.FixtureRequest, target: str, clients: Callable[[str, str], Client]) -> Client:
    """Each HTTP client at each target."""
    return clients(request.param, target)


@pytest.fixture(params=GRPC_KINDS)
def grpc(request: pytest.FixtureRequest, target: str, clients: Callable[[str, str], Client]) -> Client:
    """Each gRPC client at each target."""
    return clients(request.param, target)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, clients: Callable[[str, str], Client]) -> tuple[Client, Client]:
    """The same kind of client at the gateway and at Triton."""
    return clients(request.param, "gateway"), clients(request.param, "triton")


def post(
    targets: dict[str, Target],
    target: str,
    path: str,
    body: Any = None,
    *,
    content: bytes | None = None,
    **headers: str,
) -> httpx.Response:
    """A request that no method of ``tritonclient`` makes."""
    where = targets[target]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        f"http://{where.http}{path}", json=body, content=content, headers={**where.headers, **named}, timeout=60.0
    )


# --- server, repository, models


class TestServer:
    def test_is_live_and_ready(self, client: Client) -> None:
        assert client.call("is_server_live") is True
        assert client.call("is_server_ready") is True

    def test_metadata(self, client: Client) -> None:
        metadata = client.plain("get_server_metadata")
        assert set(metadata) == {"name", "version", "extensions"}
        assert {"statistics", "model_configuration", "classification", "parameters", "binary_tensor_data"} <= set(
            metadata["extensions"]
        )

    def test_model_readiness(self, client: Client) -> None:
        assert client.call("is_model_ready", "add_sub") is True
        assert client.call("is_model_ready", "negate", "1") is True
        assert client.call("is_model_ready", "negate", "7") is False
        assert client.call("is_model_ready", "nothing") is False

    @pytest.mark.parametrize("model", MODELS)
    def test_model_metadata_and_configuration(self, pair: tuple[Client, Client], model: str) -> None:
        gateway, triton = pair
        assert gateway.plain("get_model_metadata", model) == triton.plain("get_model_metadata", model)
        assert gateway.plain("get_model_config", model) == triton.plain("get_model_config", model)

    @pytest.mark.parametrize("version", ["1", "2"])
    def test_metadata_of_a_version(self, pair: tuple[Client, Client], version: str) -> None:
        gateway, triton = pair
        assert gateway.plain("get_model_metadata", "negate", version) == triton.plain(
            "get_model_metadata", "negate", version
        )

    def test_statistics(self, pair: tuple[Client, Client]) -> None:
        gateway, triton = pair
        gateway.infer("negate", [gateway.input("X", np.ones((2, 1), np.float32))], model_version="1")
        for arguments in (("negate", "1"), ("negate",), ()):
            ours = gateway.plain("get_inference_statistics", *arguments)["model_stats"]
            theirs = triton.plain("get_inference_statistics", *arguments)["model_stats"]
            assert [(entry["name"], entry["version"]) for entry in ours] == [
                (entry["name"], entry["version"]) for entry in theirs
            ]
            for mine, other in zip(ours, theirs, strict=True):
                assert mine == other

    def test_repository_index(self, pair: tuple[Client, Client]) -> None:
        gateway, triton = pair
        ours, theirs = (side.plain("get_model_repository_index") for side in (gateway, triton))
        if not gateway.is_http:
            ours, theirs = ours["models"], theirs["models"]
        by_name = {(model["name"], model.get("version", "")): model for model in theirs}
        assert {(model["name"], model.get("version", "")): model for model in ours} == by_name
        assert {name for name, _ in by_name} >= set(MODELS)

    def test_load_and_unload(
        self, client: Client, clients: Callable[[str, str], Client], poll: Callable[..., None]
    ) -> None:
        client.call("unload_model", "words")
        poll(lambda: client.call("is_model_ready", "words") is False, 20, "the model's end")
        client.call("load_model", "words")
        assert client.call("is_model_ready", "words") is True
        # Where Triton was asked behind the gateway's back, it notices at its next probe.
        poll(lambda: clients("http", "gateway").call("is_model_ready", "words"), 20, "the model at the gateway")
        with pytest.raises(InferenceServerException):
            client.call("load_model", "nothing")


# --- tensors


def types_inputs(client: Client, binary: Callable[[str], bool] = lambda _dtype: True) -> list[Any]:
    return [client.input(f"IN_{dtype}", VALUES[dtype], binary=binary(dtype)) for dtype in ALL_ONNX]


def check_types(result: Any, names: tuple[str, ...] = ALL_ONNX) -> None:
    for dtype in names:
        expected = VALUES[dtype]
        if dtype == "STRING":
            expected = np.array([[text.encode() for text in expected[0]]], np.object_)
        found = result.as_numpy(f"OUT_{dtype}")
        if dtype == "STRING":  # JSON gives texts, binary data bytes
            found = np.array([[x.encode() if isinstance(x, str) else x for x in found[0]]], np.object_)
        np.testing.assert_array_equal(found, expected, err_msg=dtype)
        assert found.dtype == expected.dtype


class TestTensors:
    def test_every_datatype(self, client: Client) -> None:
        check_types(client.infer("types", types_inputs(client)))

    def test_bf16(self, client: Client) -> None:
        values = np.array([[-1.5, 0.0, 256.0]], ml_dtypes.bfloat16)
        result = client.infer("bf16", [client.input("IN__0", values, datatype="BF16")])
        assert client.answer(result)["outputs"] == [("OUT__0", "BF16", (1, 3))]
        np.testing.assert_array_equal(result.as_numpy("OUT__0"), values)

    @pytest.mark.parametrize("turn", [0, 1])
    def test_json_and_binary_in_any_mix(self, http: Client, turn: int) -> None:
        """Every other tensor as JSON, in and out; FP16 has no JSON form at Triton."""
        as_json = {dtype for place, dtype in enumerate(ALL_ONNX) if place % 2 == turn and dtype not in {"FP16", "FP32"}}
        result = http.infer(
            "types",
            types_inputs(http, lambda dtype: dtype not in as_json),
            outputs=[http.output(f"OUT_{dtype}", binary=dtype in as_json or dtype == "FP32") for dtype in ALL_ONNX
                     if dtype != "FP16"],
        )  # fmt: skip
        check_types(result, tuple(dtype for dtype in ALL_ONNX if dtype != "FP16"))

    def test_all_json(self, http: Client) -> None:
        result = http.infer(
            "add_sub",
            [http.input("A", LEFT, binary=False), http.input("B", RIGHT, binary=False)],
            outputs=[http.output("SUM", binary=False), http.output("DIFFERENCE", binary=False)],
        )
        np.testing.assert_array_equal(result.as_numpy("SUM"), LEFT + RIGHT)
        np.testing.assert_array_equal(result.as_numpy("DIFFERENCE"), LEFT - RIGHT)
        assert "data" in result.get_output("SUM")

    def test_no_batch_dimension(self, client: Client) -> None:
        values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
        result = client.infer("negate", [client.input("X", values)], model_version="1")
        np.testing.assert_array_equal(result.as_numpy("Y"), -values)

    def test_bytes_that_are_no_text(self, client: Client) -> None:
        """A model of the embedded ONNX backend takes texts only: both refuse, as the same exception."""
        inputs = [tensor for tensor in types_inputs(client) if tensor.name() != "IN_STRING"]
        broken = client.input("IN_STRING", np.array([[b"\xff\xfe", b"a", b"b"]], np.object_))
        with pytest.raises(InferenceServerException):
            client.infer("types", [*inputs, broken])


class TestRequests:
    def test_several_inputs_and_outputs(self, client: Client) -> None:
        result = client.infer("add_sub", [client.input("A", LEFT), client.input("B", RIGHT)], request_id="r-1")
        assert client.answer(result) == {
            "model": "add_sub", "version": "1", "id": "r-1",
            "outputs": [("SUM", "FP32", (2, 4)), ("DIFFERENCE", "FP32", (2, 4))],
        }  # fmt: skip
        np.testing.assert_array_equal(result.as_numpy("SUM"), LEFT + RIGHT)
        np.testing.assert_array_equal(result.as_numpy("DIFFERENCE"), LEFT - RIGHT)

    @pytest.mark.parametrize("names", [("DIFFERENCE",), ("DIFFERENCE", "SUM")])
    def test_selected_outputs(self, client: Client, names: tuple[str, ...]) -> None:
        result = client.infer(
            "add_sub", [client.input("B", RIGHT), client.input("A", LEFT)], outputs=[client.output(n) for n in names]
        )
        assert {name for name, _, _ in client.answer(result)["outputs"]} == set(names)
        np.testing.assert_array_equal(result.as_numpy("DIFFERENCE"), LEFT - RIGHT)

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize("count", [1, 3, 9])
    def test_classification(self, client: Client, count: int, binary: bool) -> None:
        result = client.infer(
            "add_sub",
            [client.input("A", LEFT), client.input("B", RIGHT)],
            outputs=[client.output("SUM", binary=binary, classes=count), client.output("DIFFERENCE", binary=binary)],
        )
        found = [[x if isinstance(x, str) else x.decode() for x in row] for row in result.as_numpy("SUM")]
        best = [(14.0, 2), (13.0, 3), (12.0, 1), (11.0, 0)], [(5.0, 0), (2.0, 2), (1.0, 1), (0.5, 3)]
        assert found == [[f"{value:f}:{index}:{LABELS[index]}" for value, index in row[:count]] for row in best]
        np.testing.assert_array_equal(result.as_numpy("DIFFERENCE"), LEFT - RIGHT)

    @pytest.mark.parametrize(("version", "sign"), [("1", -1), ("2", 1), ("", 1)])
    def test_versions(self, client: Client, version: str, sign: int) -> None:
        values = np.array([[1.0], [2.0]], np.float32)
        result = client.infer("negate", [client.input("X", values)], model_version=version)
        np.testing.assert_array_equal(result.as_numpy("Y"), sign * values)
        assert client.answer(result)["version"] == (version or "2")

    def test_parameters_reach_the_model(self, client: Client) -> None:
        given = {"colour": "red", "size": 3, "bright": True}
        text = client.input("text_input", np.array([b"hi"], np.object_))
        result = client.infer("chat", [text], parameters=given)
        assert json.loads(result.as_numpy("parameters")[0]) == given

    def test_optional_input(self, client: Client) -> None:
        text = client.input("text_input", np.array([b"hi"], np.object_))
        assert client.infer("chat", [text]).as_numpy("text_output")[0] == b"HI"
        twice = client.input("count", np.array([2], np.int32))
        assert client.infer("chat", [text, twice]).as_numpy("text_output")[0] == b"HI HI"

    def test_priority_and_timeout_are_taken(self, client: Client) -> None:
        inputs = [client.input("A", LEFT), client.input("B", RIGHT)]
        result = client.infer("add_sub", inputs, priority=1, timeout=30_000_000)
        np.testing.assert_array_equal(result.as_numpy("SUM"), LEFT + RIGHT)

    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of tritonclient through aiohttp
    def test_a_large_tensor(self, client: Client) -> None:
        """8 MiB each way."""
        values = np.arange(2 * 2**20, dtype=np.float32).reshape(2, -1)
        result = client.infer("negate", [client.input("X", values)], model_version="1")
        np.testing.assert_array_equal(result.as_numpy("Y"), -values)

    @pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
    def test_compressed_messages(self, grpc: Client, algorithm: str) -> None:
        inputs = [grpc.input("A", LEFT), grpc.input("B", RIGHT)]
        result = grpc.infer("add_sub", inputs, compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("SUM"), LEFT + RIGHT)

    @pytest.mark.parametrize("kind", ["http", "grpc"])
    def test_many_at_once(self, clients: Callable[[str, str], Client], target: str, kind: str) -> None:
        """``async_infer`` of the clients that are not asyncio's; each gets its own answer."""
        client = clients(kind, target)
        for number, result in enumerate(client.many("add_sub", [(LEFT + number, RIGHT) for number in range(20)])):
            np.testing.assert_array_equal(result.as_numpy("SUM"), LEFT + number + RIGHT)


class TestHttp:
    @pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("question", [None, "gzip", "deflate"])
    @pytest.mark.parametrize("binary", [True, False])
    def test_compressed_bodies(self, http: Client, question: str | None, answer: str | None, binary: bool) -> None:
        result = http.infer(
            "add_sub",
            [http.input("A", LEFT, binary=binary), http.input("B", RIGHT)],
            outputs=[http.output("SUM", binary=binary), http.output("DIFFERENCE")],
            request_compression_algorithm=question,
            response_compression_algorithm=answer,
        )
        np.testing.assert_array_equal(result.as_numpy("SUM"), LEFT + RIGHT)
        np.testing.assert_array_equal(result.as_numpy("DIFFERENCE"), LEFT - RIGHT)

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_answers_are_compressed_if_asked(self, targets: dict[str, Target], target: str, encoding: str) -> None:
        body = {"inputs": [{"name": "X", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}]}
        reply = post(targets, target, "/v2/models/negate/versions/1/infer", body, accept_encoding=encoding)
        assert reply.headers["content-encoding"] == encoding
        assert reply.json()["outputs"][0]["data"] == [-1, -2]

    def test_a_raw_request(self, targets: dict[str, Target], target: str) -> None:
        """The body is the only tensor; -1 becomes what it holds."""
        values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "<f4")
        reply = post(
            targets, target, "/v2/models/negate/versions/1/infer", content=values.tobytes(),
            Inference_Header_Content_Length="0",
        )  # fmt: skip
        assert reply.status_code == 200
        length = int(reply.headers["inference-header-content-length"])
        result = tritonclient.http.InferenceServerClient.parse_response_body(reply.content, header_length=length)
        np.testing.assert_array_equal(result.as_numpy("Y"), -values)

    def test_generate(self, targets: dict[str, Target], target: str) -> None:
        for body in (
            {"text_input": "hi", "parameters": {"count": 2, "colour": "red"}},
            {"text_input": "hi", "count": 2, "parameters": {"colour": "red"}},
            {"text_input": ["hi"], "count": [2], "colour": "red"},
        ):
            reply = post(targets, target, "/v2/models/chat/generate", {"id": "g1", **body})
            assert reply.status_code == 200, reply.text
            assert reply.json() == {
                "id": "g1", "model_name": "chat", "model_version": "1", "text_output": "HI HI",
                "parameters": reply.json()["parameters"],
            }  # fmt: skip
            # Triton hands the id to the model as a parameter too
            assert {"colour": "red"}.items() <= json.loads(reply.json()["parameters"]).items()

    @pytest.mark.parametrize("path", ["/v2/models/words/generate", "/v2/models/words/versions/1/generate"])
    def test_generate_with_one_answer_of_a_stream(self, targets: dict[str, Target], target: str, path: str) -> None:
        reply = post(targets, target, path, {"text_input": "one"})
        assert (reply.status_code, reply.json()["text_output"]) == (200, "one")
        more = post(targets, target, path, {"text_input": "one two"})
        assert set(more.json()) == {"error"}  # with 200 at Triton, whose head has gone by then
        assert target == "triton" or more.status_code == 501

    @pytest.mark.parametrize("body", [{}, {"text_input": "hi", "nothing": {"a": 1}}, {"text_input": {"a": 1}}])
    def test_generate_refuses(self, targets: dict[str, Target], target: str, body: dict[str, Any]) -> None:
        reply = post(targets, target, "/v2/models/chat/generate", body)
        assert reply.status_code >= 400
        assert isinstance(reply.json()["error"], str)

    @pytest.mark.parametrize(
        "path", ["/v2/models/words/generate_stream", "/v2/models/words/versions/1/generate_stream"]
    )
    def test_generate_stream(self, targets: dict[str, Target], target: str, path: str) -> None:
        reply = post(targets, target, path, {"text_input": "one two three"})
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line]
        assert [(event["text_output"], event["place"]) for event in events] == [("one", 0), ("two", 1), ("three", 2)]
        assert {event["model_name"] for event in events} == {"words"}

    def test_an_error_in_a_stream(self, targets: dict[str, Target], target: str) -> None:
        """It is the last event; the gateway cuts the connection after it besides, so that nobody takes it for whole."""
        where, received = targets[target], b""
        with httpx.stream(
            "POST", f"http://{where.http}/v2/models/words/generate_stream", json={"text_input": "one fail two"},
            headers=where.headers, timeout=60.0,
        ) as reply:  # fmt: skip
            assert reply.status_code == 200
            with contextlib.suppress(httpx.RemoteProtocolError):
                for part in reply.iter_bytes():
                    received += part
        first, last = (json.loads(line.removeprefix(b"data: ")) for line in received.splitlines() if line)
        assert first["text_output"] == "one"
        assert set(last) == {"error"}
        assert target == "triton" or b"/opt" not in received

    def test_an_error_before_a_stream(self, targets: dict[str, Target], target: str) -> None:
        for body in ({"text_input": "fail"}, {}):
            reply = post(targets, target, "/v2/models/words/generate_stream", body)
            assert reply.status_code >= 400
            assert "error" in reply.text
            assert target == "triton" or "/opt" not in reply.text


class TestStreams:
    """gRPC's ModelStreamInfer."""

    def request(self, client: Client, text: str, identity: str = "", model: str = "words") -> dict[str, Any]:
        tensor = client.input("text_input", np.array([text.encode()], np.object_))
        return {"model_name": model, "inputs": [tensor], "request_id": identity}

    def test_answers_of_a_decoupled_model(self, grpc: Client) -> None:
        received = grpc.stream([self.request(grpc, "one two three", "s1")])
        assert texts(received, "text_output") == ["one", "two", "three"]
        assert [int(result.as_numpy("place")[0]) for result in received] == [0, 1, 2]
        assert {grpc.answer(result)["id"] for result in received} == {"s1"}

    def test_requests_follow_each_other(self, grpc: Client) -> None:
        received = grpc.stream([self.request(grpc, text) for text in ("one two", "three", "four five")])
        assert sorted(texts(received, "text_output")) == sorted(["one", "two", "three", "four", "five"])

    def test_models_that_do_not_stream(self, grpc: Client) -> None:
        received = grpc.stream([self.request(grpc, text, model="chat") for text in ("hi", "ho")])
        assert sorted(texts(received, "text_output")) == ["HI", "HO"]

    def test_an_error_ends_its_request_alone(self, grpc: Client) -> None:
        requests = [self.request(grpc, "one fail two"), self.request(grpc, "three")]
        received = texts(grpc.stream(requests), "text_output")
        assert sorted(received) == ["error", "one", "three"]
        assert received.index("one") < received.index("error")

    def test_bad_requests(self, grpc: Client) -> None:
        wrong = {"model_name": "words", "inputs": [grpc.input("nothing", np.array([b"x"], np.object_))]}
        unknown = self.request(grpc, "one", model="nothing")
        for request in (wrong, unknown):
            received = grpc.stream([request, self.request(grpc, "three")])
            assert sorted(texts(received, "text_output")) == ["error", "three"]

    def test_empty_final_response(self, target: str, clients: Callable[[str, str], Client]) -> None:
        client = clients("grpc", target)
        request = {**self.request(client, "one two", "f1"), "enable_empty_final_response": True}
        received = client.stream([request])
        final = [result.get_response().parameters["triton_final_response"].bool_param for result in received]
        assert final == [False, False, True]
        assert client.answer(received[-1])["outputs"] == []
        assert client.answer(received[-1])["id"] == "f1"


# --- mistakes


class TestErrors:
    def raises(self, client: Client, model: str, inputs: list[Any], **options: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, inputs, **options)
        assert str(caught.value.message())
        return str(caught.value.status())

    def both(self, client: Client) -> list[Any]:
        return [client.input("A", LEFT), client.input("B", RIGHT)]

    def test_unknown_model_and_version(self, client: Client) -> None:
        statuses = {
            self.raises(client, "nothing", self.both(client)),
            self.raises(client, "add_sub", self.both(client), model_version="7"),
        }
        if client.target.name == "gateway":
            assert statuses == {"404" if client.is_http else "StatusCode.NOT_FOUND"}
        for name in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
            with pytest.raises(InferenceServerException):
                client.call(name, "nothing")

    @pytest.mark.parametrize(
        "mistake", ["shape", "rank", "batch", "datatype", "missing", "twice", "unknown input", "unknown output"]
    )
    def test_wrong_tensors(self, client: Client, mistake: str) -> None:
        inputs, outputs = self.both(client), None
        wide = np.ones((2, 5), np.float32)
        if mistake == "shape":
            inputs[0] = client.input("A", wide)
        elif mistake == "rank":
            inputs[0] = client.input("A", np.ones((2, 4, 1), np.float32))
        elif mistake == "batch":
            inputs = [client.input(name, np.ones((9, 4), np.float32)) for name in "AB"]
        elif mistake == "datatype":
            inputs[0] = client.input("A", LEFT.astype(np.float64))
        elif mistake == "missing":
            del inputs[0]
        elif mistake == "twice":
            inputs[1] = inputs[0]
        elif mistake == "unknown input":
            inputs.append(client.input("C", LEFT))
        else:
            outputs = [client.output("PRODUCT")]
        status = self.raises(client, "add_sub", inputs, outputs=outputs)
        if client.target.name == "gateway":
            assert status == ("422" if client.is_http else "StatusCode.INVALID_ARGUMENT")

    def test_a_model_that_fails(self, client: Client) -> None:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("chat", [client.input("text_input", np.array([b"fail"], np.object_))])
        assert client.target.name == "triton" or "/opt" not in str(caught.value)

    def test_a_decoupled_model_without_a_stream(self, client: Client) -> None:
        self.raises(client, "words", [client.input("text_input", np.array([b"one two"], np.object_))])


# --- the gateway's own limits


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, clients: Callable[[str, str], Client]) -> Client:
    """Each kind of client at the gateway."""
    return clients(request.param, "gateway")


class TestLimits:
    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of tritonclient through aiohttp
    @pytest.mark.parametrize("kind", ["http", "grpc"])
    def test_a_tensor_as_large_as_a_body_may_be(self, clients: Callable[[str, str], Client], kind: str) -> None:
        """64 MiB each way, less what stands around them; one row more is refused before it is read."""
        client = clients(kind, "gateway")
        values = np.arange(16 * 2**20 - 1024, dtype=np.float32).reshape(2, -1)
        result = client.infer("negate", [client.input("X", values)], model_version="1")
        assert np.array_equal(result.as_numpy("Y"), -values)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("negate", [client.input("X", np.zeros((2, 8 * 2**20 + 1), np.float32))], model_version="1")
        assert caught.value.status() == ("413" if client.is_http else "StatusCode.RESOURCE_EXHAUSTED")

    LYING = (
        b"", b"\x01", struct.pack("<I", 2**32 - 1), struct.pack("<I", 5) + b"abc", struct.pack("<I", 1) + b"ab",
        struct.pack("<I", 1) + b"a" + struct.pack("<I", 0), struct.pack("<i", -1) + b"a" * 8,
    )  # fmt: skip

    @pytest.mark.parametrize("raw", LYING, ids=range(len(LYING)))
    def test_lengths_of_texts_that_lie(self, own: Client, raw: bytes) -> None:
        """A BYTES tensor whose elements run past its end, or are not as many as its shape says."""
        tensor = own.input("text_input", np.array([b"hi"], np.object_))
        if own.is_http:
            tensor._raw_data = raw
            tensor._parameters["binary_data_size"] = len(raw)
        else:
            tensor._raw_content = raw
        with pytest.raises(InferenceServerException) as caught:
            own.infer("chat", [tensor])
        assert caught.value.status() in {"422", "400", "StatusCode.INVALID_ARGUMENT"}, caught.value
        assert own.infer("chat", [own.input("text_input", np.array([b"hi"], np.object_))]).as_numpy("text_output")[0]

    @pytest.mark.parametrize("shape", [[0], [-1], [2**62], [1, 1], []])
    def test_shapes_of_texts_that_lie(self, targets: dict[str, Target], shape: list[int]) -> None:
        body = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": shape, "data": ["hi"]}]}
        reply = post(targets, "gateway", "/v2/models/chat/infer", body)
        assert reply.status_code == 422, reply.text
