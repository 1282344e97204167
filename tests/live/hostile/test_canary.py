"""Case 72: a key sent through every error path, on every route and every listener, is nowhere afterwards.

The canary is a good key of a gateway of its own, and beside it one that was revoked and one that is mistyped.
They go out as the credential and where they do not belong: URL, headers, body, names of fields, model name,
request id, idempotency key, label, trace context. Then everything is read that the gateway has written.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from embedded.launcher import serving
from gateway.access import keyformat
from tests.live.hostile.invariants import GOOD
from tests.live.hostile.second import Second, second_gateway
from tests.live.hostile.wire import request, talk

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[3]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
PARTS = ("{}", "../{}", "x{}y")


class Collector:
    """What an OpenTelemetry collector gets to see."""

    def __init__(self) -> None:
        collector = self
        self.received: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.received.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    started = Collector()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary")


@pytest.fixture(scope="module")
def second(folder: Path, collector: Collector) -> Iterator[Second]:
    """Before a Triton of its own: what it infers on the shared one, the shared gateway's books would rightly miss."""
    settings = {"log_level": "debug", "otlp_endpoint": collector.url, "otlp_ratio": 1.0}
    with (
        serving(ROOT / "model_repository", folder / "triton", ["identity", "digits"]) as triton,
        second_gateway(folder / "data", triton.grpc_url, models="identity,digits", **settings) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def canaries(second: Second) -> list[str]:
    """Good for everything, good for little, revoked, mistyped."""
    scopes = [item for scope in ("infer", "keys:admin", "usage:read", "audit:read", "models:admin")
              for item in ("--scope", scope)]  # fmt: skip
    mighty = second.make_key("--label", "canary", *scopes)
    meek, revoked = second.make_key("--model", "digits"), second.make_key("--label", "to be revoked")
    answer = httpx.post(
        f"{second.gateway.url}/admin/keys/{revoked.split('_')[2]}/revoke", headers=bearer(mighty), timeout=30
    )
    assert answer.status_code == 200, answer.text
    mistyped = mighty[:-1] + ("0" if mighty[-1] != "0" else "1")
    return [mighty, meek, revoked, mistyped, keyformat.generate(keyformat.generate_id(), test=False).text]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def paths(url: str, key: str) -> list[tuple[str, str]]:
    """Method and path of every operation that the gateway describes, and some that it does not."""
    found: list[tuple[str, str]] = []
    for document in ("/openapi.json", "/admin/openapi.json"):
        described = httpx.get(url + document, headers=bearer(key), timeout=30).json()["paths"]
        found += [(method.upper(), path) for path, item in described.items() for method in item]
    return [*found, ("GET", "/metrics"), ("POST", "/nothing/{x}"), ("GET", "/v2/logging"), ("POST", "/v2/trace/{x}")]


def values(path: str, fill: str) -> str:
    if "/repository/models/" in path and fill == "digits":
        fill = "no-such-model"  # the key may really unload one
    return re.sub(r"{[^}]*}", fill, path)


def bodies(canary: str) -> list[tuple[dict[str, str], bytes]]:
    """Bodies that are wrong in every way, with the canary in them."""
    as_json = {"content-type": "application/json"}
    told: list[Any] = [
        {"inputs": canary}, {canary: canary}, {"inputs": canary, "parameters": {canary: canary}}, [canary], canary,
        {"model": canary, "input": canary}, {"model": "digits", "input": canary, canary: 1},
        {"inputs": [{"name": canary, "shape": [1, 64], "datatype": canary, "data": [canary]}]},
        {"id": canary, **GOOD, "parameters": {canary: canary}, "outputs": [{"name": canary}]},
        {"project": canary, "label": canary, "scopes": [canary], "tier": canary, "models": [canary]},
        {"project": "tests", "label": canary}, {"project": "tests", "models": [canary]},
        {"project": "tests", "label": f"key {canary}"}, {"rotation": canary}, {"name": canary, "organisation": canary},
        {"limit_usd": canary}, {"requests_per_second": canary, canary: 1}, {"concurrency": 1},
    ]  # fmt: skip
    raw = canary.encode()
    return [
        *((as_json, json.dumps(body).encode()) for body in told),
        (as_json, b'{"inputs": "' + raw), (as_json, b'{"a": 1}' + raw), (as_json, raw * 40),
        ({"content-type": canary}, raw), ({"content-type": "image/png"}, raw),
        (as_json | {"content-encoding": canary}, raw), (as_json | {"content-encoding": "gzip"}, raw),
        (as_json | {"inference-header-content-length": canary}, raw), ({}, b""),
    ]  # fmt: skip


def odd_headers(canary: str) -> list[dict[str, str]]:
    return [
        {"x-request-id": canary}, {"x-request-id": f"a.{canary}.b"}, {"idempotency-key": canary},
        {"user-agent": canary}, {"accept": canary}, {"cookie": f"key={canary}"}, {"x-api-key": canary},
        {"traceparent": canary, "tracestate": f"key={canary}"},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": f"key={canary}"},
        {"host": canary}, {"origin": canary}, {"referer": f"http://x/?key={canary}"}, {canary.lower(): canary},
    ]  # fmt: skip


class Sender:
    """Sends, and keeps what came back."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60.0)
        self.answers: list[str] = []

    def __call__(self, method: str, path: str, headers: dict[str, str], body: bytes = b"{}") -> None:
        answer = self._client.request(method, path, headers=headers, content=body)
        created = answer.status_code < 300 and path.startswith("/admin/keys")
        # A key just made is shown once, as it must be.
        self.answers.append(f"{answer.status_code} {'' if created else answer.text} {answer.headers}")

    def close(self) -> None:
        self._client.close()


def over_http(send: Sender, operations: list[tuple[str, str]], canaries: list[str]) -> None:
    mighty = canaries[0]
    # Every operation with every key as its credential, and with none.
    for (method, path), key in itertools.product(operations, [*canaries, None]):
        send(method, values(path, "digits"), {"content-type": "application/json"} | (bearer(key) if key else {}))
    # Every operation with the canary in its path and in its query.
    for (method, path), canary in itertools.product(operations, canaries[:2]):
        for part in PARTS:
            send(method, values(path, part.format(canary)), bearer(mighty))
        query = f"since={canary}&group_by={canary}&{canary}=1"
        send(method, f"{values(path, 'digits')}?key={canary}&{query}", {})
        send(method, f"{values(path, 'digits')}?{query}", bearer(mighty))
    # Every operation that takes a body with every wrong body, and all of them with every odd header.
    for method, path in operations:
        for headers, body in bodies(canaries[1]) if method in {"POST", "PUT", "PATCH"} else ():
            send(method, values(path, "digits"), bearer(mighty) | headers, body)
        for headers in odd_headers(canaries[1]):
            send(method, values(path, "digits"), bearer(mighty) | headers)
    # What is executed.
    good = json.dumps(GOOD).encode()
    for method, headers, key in itertools.product(METHODS, odd_headers(mighty), canaries[:2]):
        send(method, "/v2/models/identity/infer", bearer(key) | headers, good)


def over_sockets(url: str, canary: str) -> list[str]:
    """What is not HTTP."""
    sent = (
        request("GET", f"/{canary}", {"host": canary}), request("GET", f"http://{canary}/admin/keys"),
        f"{canary} / HTTP/1.1\r\n\r\n".encode(), f"GET / {canary}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\n{canary}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nhost: a\r\nx: {canary * 2000}\r\n\r\n".encode(),
        f"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {canary}\r\n\r\n".encode(),
        f"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {canary}\r\n\r\n".encode(),
    )  # fmt: skip
    return [answer.text + str(answer.headers) for raw in sent for answer in talk(url, raw)]


def on_the_admin_listener(metrics_url: str, canary: str) -> list[str]:
    places = ("/metrics", f"/{canary}", f"/metrics?key={canary}", "/healthz/ready")
    return [httpx.get(metrics_url.replace("/metrics", place), headers=bearer(canary)).text for place in places]


def test_72_no_key_is_anywhere(
    second: Second, canaries: list[str], folder: Path, collector: Collector, stack: Any, poll: Callable[..., None]
) -> None:
    url = second.gateway.url
    send = Sender(url)
    try:
        over_http(send, paths(url, canaries[0]), canaries)
    finally:
        send.close()
    assert len(send.answers) > 1000
    answers = send.answers + over_sockets(url, canaries[0])
    answers += on_the_admin_listener(second.gateway.metrics_url, canaries[0])
    answers += over_grpc(second.gateway.grpc_address, canaries)
    everything = everywhere(second, folder, collector, stack, poll)
    everything["answers"] = "\n".join(answers)
    for where, text in everything.items():
        for canary in canaries:
            secret = canary.split("_")[3]
            for needle in (canary, secret, secret[:16], secret[-16:]):
                found = text.find(needle)
                assert found < 0, f"{where}: …{text[max(0, found - 300) : found].strip()}"
    # It can find something: the keys' ids are no secret.
    assert canaries[0].split("_")[2] in everything["database dump"]
    assert "RepositoryIndex" in everything["traces"]
    assert any(name.endswith(".log") for name in everything)


def over_grpc(address: str, canaries: list[str]) -> list[str]:
    """Every call of the service with the canary as the credential, in metadata and in the message."""
    answers: list[str] = []
    mighty = canaries[0]
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        infer = pb.ModelInferRequest(model_name=mighty, id=mighty)
        infer.parameters[mighty].string_param = mighty
        infer.inputs.add(name=mighty, datatype=mighty, shape=[1])
        good = pb.ModelInferRequest(model_name="identity", id=mighty)
        good.inputs.add(name="INPUT", datatype="FP32", shape=[1, 64])
        good.raw_input_contents.append(bytes(256))
        calls: list[tuple[Any, Any]] = [
            (stub.ServerMetadata, pb.ServerMetadataRequest()), (stub.ModelReady, pb.ModelReadyRequest(name=mighty)),
            (stub.ModelMetadata, pb.ModelMetadataRequest(name=mighty, version=mighty)),
            (stub.ModelConfig, pb.ModelConfigRequest(name=mighty)),
            (stub.ModelStatistics, pb.ModelStatisticsRequest(name=mighty)), (stub.ModelInfer, infer),
            (stub.ModelInfer, good), (stub.RepositoryIndex, pb.RepositoryIndexRequest(repository_name=mighty)),
            (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=mighty)),
            (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=mighty)),
            (stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest(name=mighty)),
        ]  # fmt: skip
        extra: list[tuple[tuple[str, str], ...]] = [
            (), (("x-request-id", mighty),), (("idempotency-key", mighty),), (("tracestate", f"a={mighty}"),),
            (("x-api-key", mighty),), ((mighty.lower(), mighty),),
        ]  # fmt: skip
        for (method, message), key, more in itertools.product(calls, canaries, extra):
            try:
                reply = method(message, metadata=(("authorization", f"Bearer {key}"), *more), timeout=30)
                answers.append("" if message is good else str(reply))  # its id is the caller's own, and given back
            except grpc.RpcError as error:
                answers.append(f"{error.details()} {error.trailing_metadata()}")
        infer.id = ""  # given back to its sender
        try:
            answers += map(str, stub.ModelStreamInfer(iter([infer]), metadata=(("authorization", f"Bearer {mighty}"),)))
        except grpc.RpcError as error:
            answers.append(str(error.details()))
    return answers


def everywhere(
    second: Second, folder: Path, collector: Collector, stack: Any, poll: Callable[..., None]
) -> dict[str, str]:
    """Everything that was written down."""
    poll(lambda: b"RepositoryIndex" in b"".join(collector.received), 30, "the last traces")
    found = {"metrics": httpx.get(second.gateway.metrics_url, timeout=30).text}
    found["traces"] = "\n".join(body.decode("latin-1") for body in collector.received)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "demo.key":
            found[str(path.relative_to(folder))] = path.read_bytes().decode("latin-1")
    database = sqlite3.connect(folder / "data" / "tidegate.db")
    try:
        found["database dump"] = "\n".join(database.iterdump())
    finally:
        database.close()
    for path in (stack.data_dir / "logs").glob("*.log"):
        found[f"log of the stack's {path.stem}"] = path.read_text(errors="replace")
    for path in (stack.data_dir / "triton").rglob("*.log"):
        found[f"Triton's {path.name}"] = path.read_text(errors="replace")
    if stack.dashboard_url is not None:
        found["dashboard"] = httpx.get(stack.dashboard_url, timeout=30).text
    return found
