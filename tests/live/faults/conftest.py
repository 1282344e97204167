"""Two Tritons behind two proxies each behind a gateway; started once, whole again before every test.

The gateway infers over HTTP, as it does wherever it knows the port. A test that says
``@pytest.mark.parametrize("fleet", WAYS, indirect=True)`` runs with a gateway that does it over gRPC too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from embedded.errors import WheelNotFoundError
from embedded.layout import find_wheel
from tests.live.faults.collector import Collector
from tests.live.faults.proxy import Road
from tests.live.faults.servers import (
    POLICY,
    GatewayProcess,
    RecordingTriton,
    write_drip,
    write_matmul,
    write_opinion,
    write_recorder,
)

WAYS = ("http", "grpc")
"""To infer; everything else goes over gRPC."""
MODELS = ("recorder", "solo", "hurried", "opinion")


@dataclass
class Fleet:
    """Everything of it; road ``i`` leads to Triton ``i``."""

    tritons: list[RecordingTriton]
    roads: list[Road]
    gateway: GatewayProcess
    repository: Path
    way: str = "http"
    """How the gateway infers."""

    def executions(self, number: int) -> int:
        """How often a number was executed, on all Tritons."""
        return sum(triton.executed()[number] for triton in self.tritons)

    def ready_servers(self) -> int:
        """Tritons that the gateway holds for able to serve."""
        text = httpx.get(self.gateway.metrics_url, timeout=10).text
        return sum(line.startswith("tidegate_upstream_up{") and line.endswith(" 1.0") for line in text.splitlines())

    def whole(self) -> bool:
        """Whether the gateway knows of all models on both Tritons: its index may be a probe old."""
        text = httpx.get(self.gateway.metrics_url, timeout=10).text
        return all(f'tidegate_model_servers{{model="{model}"}} 2.0' in text for model in MODELS)


def targets(roads: list[Road], way: str) -> str:
    """What a gateway calls its Tritons, to infer in that ``way``."""
    return ",".join(road.address if way == "http" else road.grpc_address for road in roads)


@pytest.fixture(scope="package")
def recorder_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with ``recorder``, whose requests share batches, ``solo``, whose do not, and ``hurried``,
    whose are not executed once their time has passed.
    """
    try:
        find_wheel()
    except WheelNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    repository = tmp_path_factory.mktemp("fault-models")
    write_recorder(repository)
    write_recorder(repository, "solo", max_batch_size=0)
    write_recorder(repository, "hurried", policy=POLICY)
    write_matmul(repository)
    write_opinion(repository)
    write_drip(repository)
    return repository


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    """Where the spans of the Tritons arrive."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="package")
def running_fleets(
    recorder_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    poll: Callable[..., None],
    collector: Collector,
) -> Iterator[dict[str, Fleet]]:
    """One for each way to infer; Tritons and roads are the same."""
    tritons = [
        RecordingTriton(
            recorder_repository, tmp_path_factory.mktemp("fault-triton"), f"{collector.url}/v1/traces",
            MODELS,
        )
        for _ in range(2)
    ]  # fmt: skip
    roads: list[Road] = []
    gateways: dict[str, GatewayProcess] = {}
    try:
        for triton in tritons:
            triton.start()
            triton.wait_ready()
            roads.append(Road(triton.grpc_url, triton.http_url).start())
        for way in WAYS:
            gateways[way] = GatewayProcess(
                tmp_path_factory.mktemp(f"fault-gateway-{way}"), recorder_repository, targets(roads, way), poll,
                triton_connect_timeout_s="1", triton_health_interval_s="0.25",
            ).bootstrap().start()  # fmt: skip
        yield {way: Fleet(tritons, roads, gateway, recorder_repository, way) for way, gateway in gateways.items()}
    finally:
        for gateway in gateways.values():
            if gateway.process.poll() is None:
                gateway.stop()
        for road in roads:
            road.stop()
        for triton in tritons:
            triton.stop(grace_s=1.0)


@pytest.fixture
def fleet(
    request: pytest.FixtureRequest, running_fleets: dict[str, Fleet], poll: Callable[..., None]
) -> Iterator[Fleet]:
    """The fleet, all of it well; afterwards the gateway still lives."""
    chosen = running_fleets[getattr(request, "param", WAYS[0])]
    for triton, road in zip(chosen.tritons, chosen.roads, strict=True):
        if triton.poll() is None:
            triton.thaw()
        poll(triton.ensure_running, 60, "Triton's restart")
        for model in MODELS:
            if model not in triton.ready_models():
                triton.load(model)
        road.start().heal()
    poll(lambda: chosen.ready_servers() == 2, 60, "both servers")
    poll(chosen.whole, 30, "both models on both servers")
    ready = f"{chosen.gateway.url}/healthz/ready"
    poll(lambda: httpx.get(ready, timeout=10).status_code == 200, 30, "readiness")
    yield chosen
    assert chosen.gateway.process.poll() is None
    assert httpx.get(f"{chosen.gateway.url}/healthz/live", timeout=10).status_code == 200
