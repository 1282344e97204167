"""What gRPC clients find beside inference: health, reflection, and status codes that say what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.grpc.auth import BasicAuth
from tritonclient.http.auth import BasicAuth as HttpBasicAuth

pytestmark = pytest.mark.live

S = grpc.StatusCode
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture
def channel(stack: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack.grpc_address) as opened:
        yield opened


def identity(model: str = "identity", wide: int = 64) -> Any:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, wide])
    message.raw_input_contents.append(np.zeros((1, wide), np.float32).tobytes())
    return message


# --- health and reflection, without a key: probes and tools have none


def test_health_is_that_of_grpc(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=20)
    assert caught.value.code() == S.NOT_FOUND


def test_health_can_be_watched(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    states = health_pb2.HealthCheckResponse
    for service, state in (("", states.SERVING), (SERVICE, states.SERVING), ("nothing", states.SERVICE_UNKNOWN)):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert next(watch).status == state
        watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_what_is_served(channel: grpc.Channel, version: str) -> None:
    ask_all = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString, reflection_pb2.ServerReflectionResponse.FromString,
    )  # fmt: skip

    def ask(**request: str) -> Any:
        (reply,) = ask_all(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=20)
        return reply

    services = {service.name for service in ask(list_services="*").list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= services
    found = FileDescriptorProto.FromString(
        ask(file_containing_symbol=SERVICE).file_descriptor_response.file_descriptor_proto[0]
    )
    (service,) = found.service
    assert {"ModelInfer", "ModelStreamInfer", "ServerLive"} <= {method.name for method in service.method}
    assert ask(file_containing_symbol="no.such.Thing").error_response.error_code == S.NOT_FOUND.value[0]


# --- status codes


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"metadata": ()}, S.UNAUTHENTICATED),
        ({"metadata": (("authorization", "Bearer tg_live_wrong"),)}, S.UNAUTHENTICATED),
        ({"model": "nothing"}, S.NOT_FOUND),
        ({"wide": 63}, S.INVALID_ARGUMENT),
    ],
    ids=["no key", "a wrong key", "no model", "a wrong shape"],
)
def test_codes_of_calls(stack: Any, channel: grpc.Channel, change: dict[str, Any], code: grpc.StatusCode) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    message = identity(change.get("model", "identity"), change.get("wide", 64))
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message, metadata=change.get("metadata", tuple(stack.headers.items())), timeout=20)
    assert caught.value.code() == code
    assert dict(caught.value.trailing_metadata())["x-request-id"]


def test_codes_of_rights_and_limits(stack: Any, channel: grpc.Channel) -> None:
    """A model that the key may not use; and more than a tier allows, with when to come again."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    narrow = stack.make_key("--model", "sentiment")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(identity(), metadata=(("authorization", f"Bearer {narrow}"),), timeout=20)
    assert caught.value.code() == S.PERMISSION_DENIED
    for call in (
        lambda metadata: stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=metadata, timeout=20),
        lambda metadata: stub.RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(model_name="identity"), metadata=metadata, timeout=20
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call((("authorization", f"Bearer {narrow}"),))
        assert caught.value.code() == S.NOT_FOUND
    made = stack.tidegate(
        "keys", "create", "--project", "operations", "--organisation", "tidegate", "--scope", "keys:admin", "--json"
    )
    operator = json.loads(made)["key"]
    with httpx.Client(base_url=stack.gateway_url, headers={"authorization": f"Bearer {operator}"}) as admin:
        tier = admin.put("/admin/tiers/one-a-minute", json={"requests_per_second": 1 / 60, "burst": 1})
        assert tier.is_success, tier.text
    limited = (("authorization", f"Bearer {stack.make_key('--tier', 'one-a-minute')}"),)
    assert stub.ModelInfer(identity(), metadata=limited, timeout=20).model_name == "identity"
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(identity(), metadata=limited, timeout=20)
    assert caught.value.code() == S.RESOURCE_EXHAUSTED
    trailers = dict(caught.value.trailing_metadata())
    assert 1 <= int(trailers["retry-after"]) <= 90
    assert "ratelimit" in trailers


@pytest.mark.parametrize("header", ["bearer", "x-api-key", "basic"])
def test_keys_in_metadata(stack: Any, header: str) -> None:
    """Each way that a key may come, through ``tritonclient``; its own plugin sends it as Basic's password."""
    headers = {"bearer": stack.headers, "x-api-key": {"x-api-key": stack.key}, "basic": None}[header]
    for module, address, plugin in (
        (grpcclient, stack.grpc_address, BasicAuth), (httpclient, stack.gateway_url[len("http://") :], HttpBasicAuth),
    ):  # fmt: skip
        tensor = module.InferInput("INPUT", [1, 64], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 64), np.float32))
        with module.InferenceServerClient(address) as client:
            if header == "basic":
                client.register_plugin(plugin("anybody", stack.key))
            assert client.infer("identity", [tensor], headers=headers).as_numpy("OUTPUT").shape == (1, 64)


def test_a_stream_that_wants_a_status_gets_one(stack: Any, channel: grpc.Channel) -> None:
    """``triton_grpc_error: true``: the first error ends the stream with its code; without it, it is a reply."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = tuple(stack.headers.items())
    messages = [identity(), identity(wide=63), identity()]
    replies = list(stub.ModelStreamInfer(iter(messages), metadata=metadata, timeout=20))
    assert [bool(reply.error_message) for reply in replies] == [False, True, False]
    seen = []
    with pytest.raises(grpc.RpcError) as caught:
        seen.extend(
            stub.ModelStreamInfer(iter(messages), metadata=(*metadata, ("triton_grpc_error", "true")), timeout=20)
        )
    assert caught.value.code() == S.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as stranger:
        next(stub.ModelStreamInfer(iter(messages), timeout=20))
    assert stranger.value.code() == S.UNAUTHENTICATED
