"""Tokens of a real OpenID Connect provider through a running gateway: HTTP, gRPC, ``/admin`` and the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.gateway.access.test_oidc import Provider
from tests.live.hostile.fake_triton import FakeTriton
from tests.live.hostile.invariants import GOOD
from tests.live.hostile.second import Second, second_gateway

pytestmark = [pytest.mark.live, pytest.mark.slow]

INFER = "/v2/models/identity/infer"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    started = Provider()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def second(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    triton = FakeTriton()
    folder = tmp_path_factory.mktemp("oidc")
    settings = {"oidc_issuer": provider.issuer, "oidc_audience": "tidegate"}
    try:
        with second_gateway(folder, triton.address, **settings) as running:
            running.make_key()  # and with it the project `tests`
            yield running
    finally:
        triton.close()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_infers_and_is_billed_to_its_project(
    second: Second, provider: Provider, poll: Callable[..., None]
) -> None:
    token = provider.token(tidegate_project="tests", scope="infer usage:read")
    url = second.gateway.url
    answer = httpx.post(url + INFER, json=GOOD, headers=bearer(token), timeout=30)
    assert answer.status_code == 200, answer.text
    tensor = grpcclient.InferInput("INPUT", [1, 64], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 64), np.float32))
    with grpcclient.InferenceServerClient(second.gateway.grpc_address) as client:
        assert client.infer("identity", [tensor], headers=bearer(token)).as_numpy("OUTPUT").sum() == 64
    request_id = answer.headers["x-request-id"]
    found: list[dict[str, Any]] = []

    def recorded() -> bool:
        rows = httpx.get(f"{url}/admin/usage/records", headers=bearer(token), timeout=30).json()["usage"]
        found[:] = [row for row in rows if row["request_id"] == request_id and row["state"] == "completed"]
        return bool(found)

    poll(recorded, 30, "the record")
    (record,) = found
    assert record["project"] == "tests"
    assert record["key"].startswith("oidc-")


def test_a_tokens_scopes_are_its_rights(second: Second, provider: Provider) -> None:
    url = second.gateway.url
    reader = bearer(provider.token(tidegate_project="tests", scope="usage:read"))
    assert httpx.post(url + INFER, json=GOOD, headers=reader, timeout=30).status_code == 403
    assert httpx.get(f"{url}/admin/usage", headers=reader, timeout=30).status_code == 200
    assert httpx.get(f"{url}/admin/keys", headers=reader, timeout=30).status_code == 403
    admin = bearer(provider.token(tidegate_project="tests", scope="tidegate:keys:admin"))
    shown = httpx.get(f"{url}/admin/keys", headers=admin, timeout=30)
    assert {key["organisation"] for key in shown.json()["keys"]} == {"tests"}  # its own organisation's


def test_what_is_no_token_of_ours_is_401(second: Second, provider: Provider) -> None:
    url = second.gateway.url
    wrong = (
        provider.token(tidegate_project="nowhere", scope="infer"),
        provider.token(audience="another", tidegate_project="tests", scope="infer"),
        provider.token(tidegate_project="tests", scope="infer")[:-4] + "AAAA",
    )
    for token in wrong:
        answer = httpx.post(url + INFER, json=GOOD, headers=bearer(token), timeout=30)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        tensor = grpcclient.InferInput("INPUT", [1, 64], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 64), np.float32))
        with (
            grpcclient.InferenceServerClient(second.gateway.grpc_address) as client,
            pytest.raises(InferenceServerException) as refused,
        ):
            client.infer("identity", [tensor], headers=bearer(token))
        assert refused.value.status() == str(grpc.StatusCode.UNAUTHENTICATED)
    log = Path(second.gateway.log_file).read_text()
    assert not any(token.split(".")[2][:40] in log for token in wrong)
