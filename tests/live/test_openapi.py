"""``/openapi.json`` tells the truth: schemathesis tries every route and method that it names, and more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.live.hostile.fake_triton import MODELS, FakeTriton
from tests.live.hostile.second import second_gateway

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
SEED, EXAMPLES, LIMIT_S = 20261123, 12, 280
"""The examples are of each operation; the limit is for a machine that is busy with other things."""
ELSEWHERE = {"/v2/repository/index", "/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"}
"""Need the scope ``models:admin``."""
NEVER = {"/tei/{model}/embed_sparse"}
"""No model here makes sparse embeddings."""


class Repository(FakeTriton):
    """One that loads and unloads what it is told to."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.rpartition("/")[2]
        if name not in {"RepositoryModelLoad", "RepositoryModelUnload"}:
            return super().service(details)
        self.asked[name] += 1
        done = getattr(pb, f"{name}Response")()
        return grpc.unary_unary_rpc_method_handler(
            lambda _message, _context: done, getattr(pb, f"{name}Request").FromString, type(done).SerializeToString
        )


def schemathesis(
    url: str, key: str, folder: Path, models: list[str], *arguments: str, examples: int = EXAMPLES
) -> None:
    """Run it on the document at ``url``; fail if it finds anything."""
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli",
            "--config-file", str(Path(__file__).with_name("schemathesis.toml")),
            "run", url, "--header", f"Authorization: Bearer {key}", "--seed", str(SEED),
            "--max-examples", str(examples), "--request-timeout", "60", "--continue-on-failure", "--warnings", "off",
            "--no-color", *arguments,
        ],
        cwd=folder, capture_output=True, text=True, timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FUZZED_MODELS": ",".join(models)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout


def test_schemathesis_finds_nothing(stack: Any, tmp_path: Path) -> None:
    """No 5xx but 502, 503, 504, and no answer whose status, type or form is not in the document.

    The key may infer and nothing else, so that no model is unloaded under the other tests.
    """
    schemathesis(f"{stack.gateway_url}/openapi.json", stack.make_key(), tmp_path, stack.models)
    assert httpx.get(f"{stack.gateway_url}/healthz/ready").status_code == 200


def test_schemathesis_finds_nothing_in_the_repository(tmp_path: Path) -> None:
    """The same with a key that may load and unload, on a gateway and a Triton of its own: where that succeeds too."""
    triton = Repository()
    try:
        with second_gateway(tmp_path / "gateway", triton.address) as second:
            key = second.make_key("--scope", "infer", "--scope", "models:admin")
            schemathesis(
                f"{second.gateway.url}/openapi.json", key, tmp_path, list(MODELS),
                "--include-path-regex", "^/v2/repository/", examples=40,
            )  # fmt: skip
            assert min(triton.asked[f"RepositoryModel{action}"] for action in ("Load", "Unload")) > 10
            with httpx.Client(base_url=second.gateway.url, headers={"authorization": f"Bearer {key}"}) as client:
                for path in sorted(ELSEWHERE):
                    answer = client.post(path.replace("{model}", "identity"))
                    assert answer.status_code == 200, answer.text
            second.invariants.check_alive()
    finally:
        triton.close()


def test_schemathesis_finds_nothing_in_the_administration(tmp_path: Path) -> None:
    """The same of ``/admin/openapi.json``, on a gateway of its own: the operator's key may change everything."""
    triton = FakeTriton()
    try:
        with second_gateway(tmp_path / "gateway", triton.address) as second:
            scopes = [
                argument for scope in ("keys:admin", "audit:read", "usage:read") for argument in ("--scope", scope)
            ]
            operator = second.make_key("--organisation", "tidegate", *scopes)
            # the forms of tiers, names and periods are checked by more than a schema can say
            schemathesis(
                f"{second.gateway.url}/admin/openapi.json", operator, tmp_path, ["identity"],
                "--exclude-checks", "negative_data_rejection",
            )  # fmt: skip
            second.invariants.check_alive()
    finally:
        triton.close()


def test_every_example_in_the_document_works(stack: Any) -> None:
    tried = 0
    with httpx.Client(base_url=stack.gateway_url, headers=stack.headers, timeout=60.0) as client:
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            if path in ELSEWHERE | NEVER:
                continue
            for method, operation in operations.items():
                url = path
                for parameter in operation.get("parameters", ()):
                    if parameter["in"] == "path":
                        url = url.replace("{" + parameter["name"] + "}", parameter["example"])
                content = operation.get("requestBody", {}).get("content", {})
                body = content["application/json"]["example"] if content else None
                answer = client.request(method, url, json=body)
                assert answer.status_code == 200, f"{method} {url}: {answer.text}"
                documented = operation["responses"]["200"].get("content", {})
                media_type = answer.headers.get("content-type", "").partition(";")[0]
                assert media_type in documented if documented else not answer.content
                tried += 1
    assert tried > 30
