"""Two Tritons behind two proxies behind one gateway; started once, whole again before every test."""

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
from tests.live.faults.proxy import Proxy
from tests.live.faults.servers import GatewayProcess, RecordingTriton, write_matmul, write_recorder


@dataclass
class Fleet:
    """Everything of it; proxy ``i`` stands before Triton ``i``."""

    tritons: list[RecordingTriton]
    proxies: list[Proxy]
    gateway: GatewayProcess
    repository: Path

    def executions(self, number: int) -> int:
        """How often a number was executed, on all Tritons."""
        return sum(triton.executed()[number] for triton in self.tritons)

    def ready_servers(self) -> int:
        """Tritons that the gateway holds for able to serve."""
        text = httpx.get(self.gateway.metrics_url, timeout=10).text
        return sum(line.startswith("tidegate_upstream_up{") and line.endswith(" 1.0") for line in text.splitlines())


@pytest.fixture(scope="package")
def recorder_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with ``recorder``, whose requests share batches, and ``solo``, whose do not."""
    try:
        find_wheel()
    except WheelNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    repository = tmp_path_factory.mktemp("fault-models")
    write_recorder(repository)
    write_recorder(repository, "solo", max_batch_size=0)
    write_matmul(repository)
    return repository


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    """Where the spans of the Tritons arrive."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="package")
def running_fleet(
    recorder_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    poll: Callable[..., None],
    collector: Collector,
) -> Iterator[Fleet]:
    tritons = [
        RecordingTriton(
            recorder_repository, tmp_path_factory.mktemp("fault-triton"), f"{collector.url}/v1/traces",
            ("recorder", "solo"),
        )
        for _ in range(2)
    ]  # fmt: skip
    proxies: list[Proxy] = []
    gateway = None
    try:
        for triton in tritons:
            triton.start()
            triton.wait_ready()
            proxies.append(Proxy(triton.grpc_url).start())
        gateway = GatewayProcess(
            tmp_path_factory.mktemp("fault-gateway"), recorder_repository,
            ",".join(proxy.address for proxy in proxies), poll, triton_connect_timeout_s="1",
            triton_health_interval_s="0.25",
        ).bootstrap().start()  # fmt: skip
        yield Fleet(tritons, proxies, gateway, recorder_repository)
    finally:
        if gateway is not None and gateway.process.poll() is None:
            gateway.stop()
        for proxy in proxies:
            proxy.stop()
        for triton in tritons:
            triton.stop(grace_s=1.0)


@pytest.fixture
def fleet(running_fleet: Fleet, poll: Callable[..., None]) -> Iterator[Fleet]:
    """The fleet, all of it well; afterwards the gateway still lives."""
    for triton, proxy in zip(running_fleet.tritons, running_fleet.proxies, strict=True):
        if triton.poll() is None:
            triton.thaw()
        poll(triton.ensure_running, 60, "Triton's restart")
        for model in ("recorder", "solo"):
            if model not in triton.ready_models():
                triton.load(model)
        proxy.start().heal()
    poll(lambda: running_fleet.ready_servers() == 2, 60, "both servers")
    ready = f"{running_fleet.gateway.url}/healthz/ready"
    poll(lambda: httpx.get(ready, timeout=10).status_code == 200, 30, "readiness")
    yield running_fleet
    assert running_fleet.gateway.process.poll() is None
    assert httpx.get(f"{running_fleet.gateway.url}/healthz/live", timeout=10).status_code == 200
