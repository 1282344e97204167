"""TLS all the way: ``tidegate up`` with a certificate, and inference through it with the clients of the field."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from dashboard.client import GatewayClient
from dashboard.session import trust
from dashboard.settings import Settings as DashboardSettings
from tests.gateway.certificates import Authority
from tests.live.conftest import Stack, start_stack, stop_stack

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, poll: Callable[..., None]) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("secure")
    authority = Authority()
    certificate, key = authority.issue().write(folder, "server")
    (folder / "ca.crt").write_bytes(authority.certificate)
    running = start_stack(
        folder, "--models", "identity", "--tls-cert", str(certificate), "--tls-key", str(key), poll=poll
    )
    try:
        yield running
    finally:
        stop_stack(running)


def test_everything_is_under_a_name_of_the_certificate(secure: Stack) -> None:
    assert secure.gateway_url.startswith("https://127.0.0.1:")
    screen = secure.log_file.read_text()
    assert re.search(rf"curl -s --cacert \S+server\.crt {secure.gateway_url}", screen)
    with pytest.raises(httpx.TransportError):
        httpx.get(secure.gateway_url.replace("https:", "http:") + "/healthz/ready")


def test_tritonclients_infer_through_it(secure: Stack) -> None:
    ca = str(secure.data_dir / "ca.crt")
    array = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    over_http = httpclient.InferInput("INPUT", [2, 64], "FP32")
    over_http.set_data_from_numpy(array)
    address = secure.gateway_url.removeprefix("https://")
    with httpclient.InferenceServerClient(address, ssl=True, ssl_options={"ca_certs": ca}) as client:
        result = client.infer("identity", [over_http], headers=secure.headers)
        assert np.array_equal(result.as_numpy("OUTPUT"), array)
    over_grpc = grpcclient.InferInput("INPUT", [2, 64], "FP32")
    over_grpc.set_data_from_numpy(array)
    with grpcclient.InferenceServerClient(secure.grpc_address, ssl=True, root_certificates=ca) as grpc_client:
        answer: Any = grpc_client.infer("identity", [over_grpc], headers=secure.headers)
        assert np.array_equal(answer.as_numpy("OUTPUT"), array)


def test_the_dashboard_trusts_the_gateways_own_certificate(secure: Stack, tmp_path: Path) -> None:
    """It is given the gateway's certificate, not its authority's."""
    settings = DashboardSettings(gateway_url=secure.gateway_url, ca_file=secure.data_dir / "server.crt")
    context = trust(settings)
    assert isinstance(context, ssl.SSLContext)
    with httpx.Client(base_url=secure.gateway_url, verify=context, trust_env=False) as http:
        assert [model.name for model in GatewayClient(http, secure.key).models()] == ["identity"]
    assert secure.dashboard_url is not None
    assert httpx.get(f"{secure.dashboard_url}/_stcore/health").status_code == 200
    with pytest.raises(httpx.ConnectError), httpx.Client(verify=trust(DashboardSettings())) as stranger:
        stranger.get(secure.gateway_url)
