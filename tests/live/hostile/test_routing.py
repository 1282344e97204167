"""Routing and Triton's control surface (section 1.4, cases 53 to 58)."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD, ROOT, Gateway, Invariants
from tests.live.hostile.second import Second
from tests.live.hostile.wire import request, talk

pytestmark = pytest.mark.live

NAMES = (
    "../etc", "a/../b", "../../etc/passwd", "model/..", "..", ".", "/etc/passwd", "model/subdir", "model/",
    " ..", ".. ", "", " ", "   ", "\t\n", "A" * 256, "A" * 1000, "identity/", "identity ", " identity", "identity\0",
    "IDENTITY", "identity/versions/1", "identity%00", "%2e%2e", "iden\u0442ity", "\U0001f30a", "\\..\\x",
    "identity;v=1", "~root", "*", "9" * 1_500, "\u0663",
)  # fmt: skip


@pytest.fixture(scope="module")
def admin_key(served_fake: tuple[FakeTriton, Second]) -> str:
    second = served_fake[1]
    key = second.make_key("--scope", "infer", "--scope", "models:admin")
    second.gateway.secrets += (key,)
    return key


def literal(gateway: Gateway, method: str, path: str, body: bytes = b"", key: str = "") -> Any:
    """The answer to a request whose path goes out as it is."""
    headers = {"authorization": f"Bearer {key or gateway.key}"}
    (answer,) = talk(gateway.url, request(method, path, headers, body))
    return answer


# --- names of models


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:20] for name in NAMES])
def test_53_names_that_are_none_are_404_or_422_and_never_forwarded(fake: FakeTriton, second: Second, name: str) -> None:
    body = json.dumps(GOOD).encode()
    encoded = quote(name, safe="")
    places = [
        ("POST", f"/v2/models/{encoded}/infer", body, "oip"), ("GET", f"/v2/models/{encoded}", b"", "oip"),
        ("GET", f"/v2/models/{encoded}/config", b"", "oip"), ("GET", f"/v2/models/{encoded}/stats", b"", "oip"),
        ("GET", f"/v2/models/{encoded}/ready", b"", "oip"),
        ("POST", f"/v2/models/identity/versions/{encoded or '%20'}/infer", body, "oip"),
        ("POST", f"/hf/models/{encoded}", b'{"inputs":"a"}', "hf"), ("GET", f"/v1/models/{encoded}", b"", "openai"),
        ("POST", "/v1/embeddings", json.dumps({"model": name, "input": "a"}).encode(), "openai"),
        ("POST", f"/tei/{encoded}/embed", b'{"inputs":"a"}', "tei"),
    ]  # fmt: skip
    before = fake.beyond_probes()
    with second.invariants.case() as case:
        for method, path, sent, dialect in places:
            if (method, path) == ("GET", "/v1/models/"):
                continue
            case.refused(literal(second.gateway, method, path, sent), {404, 422}, dialect)
        assert fake.beyond_probes() == before


def test_53_paths_that_climb_end_nowhere(fake: FakeTriton, second: Second) -> None:
    paths = (
        "/v2/models/../repository/index", "/v2/models/identity/../../admin/keys", "/v2//models/identity", "//v2/models",
        "/v2/models/%2e%2e/%2e%2e/admin/keys", "/v2/models/..%2f..%2fadmin", "/v2/models/identity/infer/",
        "/V2/models/identity", "/v2/models/identity/infer/extra", "/v2/models/identity/versions//infer",
        "/v2/./models/identity", "/v2/models/identity%2finfer", "/admin/../v2/models/identity", "/./admin/keys",
        "/hf/models/../../v2", "/tei/../v1/models", "/v2/%6dodels/identity/%69nfer/..",
    )  # fmt: skip
    before = fake.beyond_probes()
    with second.invariants.case() as case:
        for path in paths:
            for method in ("GET", "POST"):
                answer = case.see(literal(second.gateway, method, path, b"{}" if method == "POST" else b""))
                assert answer.status_code in {401, 403, 404, 405}, (path, answer.status_code, answer.text)
                assert answer.headers["x-request-id"]
        assert fake.beyond_probes() == before


# --- Triton's own surface

CONTROL = (
    ("GET", "/v2/systemsharedmemory/status"), ("GET", "/v2/systemsharedmemory/region/a/status"),
    ("POST", "/v2/systemsharedmemory/region/a/register"), ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"), ("POST", "/v2/cudasharedmemory/region/a/register"),
    ("POST", "/v2/cudasharedmemory/unregister"), ("GET", "/v2/logging"), ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"), ("POST", "/v2/trace/setting"), ("GET", "/v2/models/identity/trace/setting"),
    ("POST", "/v2/models/identity/trace/setting"), ("GET", "/metrics"), ("POST", "/invocations"), ("POST", "/predict"),
    ("GET", "/ping"), ("GET", "/v2/repository/models/identity"), ("POST", "/v2/repository/models/identity/reload"),
    ("GET", "/api/status"), ("GET", "/"), ("GET", "/debug"), ("GET", "/.env"), ("GET", "/server-status"),
)  # fmt: skip
SCOPED = (
    "/v2/repository/index", "/v2/repository/models/identity/load", "/v2/repository/models/identity/unload",
    "/v2/repository/models/nothing/load",
)  # fmt: skip


def test_55_tritons_control_is_404_and_never_asked(fake: FakeTriton, second: Second, admin_key: str) -> None:
    before = fake.beyond_probes()
    with second.invariants.case() as case:
        for key in (second.gateway.key, admin_key):
            for method, path in CONTROL:
                dialect = "oip" if path.startswith("/v2/") else "plain"
                case.refused(literal(second.gateway, method, path, b"", key), 404, dialect)
        for path in SCOPED:
            for body in (b"", b"{}", b"not json"):
                case.refused(literal(second.gateway, "POST", path, body), 404, "oip")
        assert fake.beyond_probes() == before


def test_55_tritons_statistics_say_the_same_on_the_running_stack(stack: Any, invariants: Invariants) -> None:
    def inferences() -> int:
        with grpc.insecure_channel(stack.triton["grpc"]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            reply = stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=20)
            return sum(model.inference_count for model in reply.model_stats)

    before = inferences()
    with invariants.case() as case:
        for method, path in CONTROL:
            case.refused(literal(invariants.gateway, method, path), 404, "oip" if "/v2/" in path else "plain")
        for path in SCOPED:
            case.refused(literal(invariants.gateway, "POST", path), 404, "oip")
        assert inferences() == before


OVERRIDES = (
    {"parameters": {"config": '{"name":"identity"}'}},
    {"parameters": {"file:1/model.onnx": base64.b64encode(b"x").decode()}},
    {"parameters": {"file:../../root/.bashrc": base64.b64encode(b"echo owned").decode(), "config": "{}"}},
    {"parameters": {"file:1/link": "eA=="}},
    {"parameters": {"unload_dependents": True, "config": "{}"}},
    {"config": "{}"},
    {"parameters": []},
    [],
)


def test_57_loads_with_overrides_are_rejected_and_nothing_is_written(
    fake: FakeTriton, second: Second, admin_key: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("as it was")
    before, files = fake.beyond_probes(), _files(ROOT / "model_repository" / "identity")
    climbing = "../" * 20 + str(target).lstrip("/")
    overrides = [*OVERRIDES, {"parameters": {f"file:{climbing}": "eA==", "config": "{}"}}]
    with second.invariants.case() as case:
        for model in ("identity", "../identity", "nothing"):
            for override in overrides:
                path = f"/v2/repository/models/{quote(model, safe='')}/load"
                answer = literal(second.gateway, "POST", path, json.dumps(override).encode(), admin_key)
                case.refused(answer, {404, 422}, "oip")
        with grpc.insecure_channel(second.gateway.grpc_address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for name, value in (("config", "{}"), (f"file:{climbing}", "x")):
                message = pb.RepositoryModelLoadRequest(model_name="identity")
                message.parameters[name].string_param = value
                with pytest.raises(grpc.RpcError) as caught:
                    stub.RepositoryModelLoad(message, metadata=(("authorization", f"Bearer {admin_key}"),), timeout=20)
                case.grpc_refused(caught.value, grpc.StatusCode.INVALID_ARGUMENT)
        assert fake.beyond_probes() == before
    assert target.read_text() == "as it was"
    assert _files(ROOT / "model_repository" / "identity") == files


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_58_loads_of_unknown_and_oversized_models_are_404(fake: FakeTriton, second: Second, admin_key: str) -> None:
    before = fake.beyond_probes()
    with second.invariants.case() as case:
        for name in (*NAMES, "nothing", "A" * 300, "A" * 3000):
            for operation in ("load", "unload"):
                path = f"/v2/repository/models/{quote(name, safe='')}/{operation}"
                case.refused(literal(second.gateway, "POST", path, b"", admin_key), 404, "oip")
        assert fake.beyond_probes() == before


def test_58_on_the_running_stack(stack: Any, invariants: Invariants) -> None:
    key = stack.make_key("--scope", "infer", "--scope", "models:admin")
    with invariants.case() as case:
        for name in ("nothing", "A" * 300, "../identity", ".."):
            for operation in ("load", "unload"):
                path = f"/v2/repository/models/{quote(name, safe='')}/{operation}"
                case.refused(literal(invariants.gateway, "POST", path, b"", key), 404, "oip")
        index = literal(invariants.gateway, "POST", "/v2/repository/index", b"", key)
        assert {"identity"} <= {model["name"] for model in index.json()}


# --- Triton itself


def test_56_triton_listens_on_loopback_only(stack: Any) -> None:
    """From another address of this machine, as from another machine, nobody answers on Triton's ports."""
    ports = {int(address.rpartition(":")[2]) for address in stack.triton.values()}
    listening: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == "0A" and int(port, 16) in ports:
                listening.setdefault(int(port, 16), set()).add(address)
    assert set(listening) == ports
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set().union(*listening.values()) <= loopback
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address faces outward
        except OSError as error:
            pytest.skip(f"this machine has no address but loopback: {error}")
        outward = probe.getsockname()[0]
    for port in ports:
        with pytest.raises(ConnectionRefusedError), socket.create_connection((outward, port), timeout=5):
            pass


def test_56_triton_keeps_what_nobody_needs_closed(stack: Any) -> None:
    """Even to who reaches it: shared memory, traces and logs are other processes' memory and files."""
    with grpc.insecure_channel(stack.triton["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for method, message in (
            ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=1)),
            ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
            ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
            ("TraceSetting", pb.TraceSettingRequest()),
            ("LogSettings", pb.LogSettingsRequest()),
        ):
            with pytest.raises(grpc.RpcError, match="restricted"):
                getattr(stub, method)(message, timeout=20)
    for path in ("systemsharedmemory/status", "cudasharedmemory/status", "trace/setting", "logging"):
        assert httpx.get(f"http://{stack.triton['http']}/v2/{path}").status_code == 403


def test_56_triton_takes_no_other_methods_from_the_gateways_clients(stack: Any, invariants: Invariants) -> None:
    """What the gateway's answers tell of where Triton is: nothing."""
    with invariants.case() as case, httpx.Client(base_url=invariants.gateway.url) as client:
        for path in ("/v2", "/v2/models/identity", "/v2/models/identity/config", "/v2/models/stats", "/openapi.json"):
            answer = case.see(client.get(path, headers=invariants.gateway.headers))
            assert answer.status_code == 200
            for address in stack.triton.values():
                assert address not in answer.text
