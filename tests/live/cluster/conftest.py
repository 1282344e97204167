"""Three gateways on one PostgreSQL and one Redis, in front of one Triton: all real, all processes."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded.errors import WheelNotFoundError
from embedded.launcher import EmbeddedTriton, serving
from embedded.layout import find_wheel
from tests.gateway.ledger.postgres import PostgreSQL, programs
from tests.gateway.servers import RedisServer
from tests.live.faults.servers import ROOT, GatewayProcess

PRICE_USD = 0.01
PRICES = f"""
version = "tests"
currency = "USD"
date = 2026-11-23
[hardware.default]
name = "a machine"
source = "tests"
per_hour = 0.1
[models.identity]
per_request = {PRICE_USD}
"""
BODY = {"inputs": [{"name": "INPUT", "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}]}
INFER = "/v2/models/identity/infer"


@dataclass
class Answers:
    """What clients saw: status and usage id of every answer, and when its request was sent."""

    seen: list[tuple[int, int, str, float]] = field(default_factory=list)
    """Gateway, status (0: the connection broke), usage id, monotonic seconds."""

    def statuses(self, gateway: int | None = None) -> Counter[int]:
        return Counter(status for number, status, _, _ in self.seen if gateway in (None, number))

    def served(self) -> list[str]:
        return [usage_id for _, status, usage_id, _ in self.seen if status == 200]

    def least(self, status: int) -> int:
        """How often every gateway has given this status, at least."""
        return min(self.statuses(number)[status] for number in range(3))


@dataclass
class Cluster:
    gateways: list[GatewayProcess]
    postgresql: PostgreSQL
    redis: RedisServer
    triton: EmbeddedTriton
    database_url: str
    admin: dict[str, str] = field(repr=False)

    def make_key(self, **body: Any) -> dict[str, str]:
        """A new key as a header; ``body`` as ``POST /admin/keys`` takes it, with ``project`` made if missing."""
        body = {"project": "shop", "scopes": ["infer"]} | body
        made = self.call("POST", "/admin/projects", {"name": body["project"], "organisation": "tidegate"})
        assert made.status_code in {201, 409}, made.text
        made = self.call("POST", "/admin/keys", body)
        assert made.status_code == 201, made.text
        return {"authorization": f"Bearer {made.json()['key']}"}

    def call(self, method: str, path: str, body: Any = None, gateway: int = 0) -> httpx.Response:
        """The operator's call."""
        url = self.gateways[gateway].url + path
        return httpx.request(method, url, json=body, headers=self.admin, timeout=30.0)

    def agree(self) -> None:
        """Have every gateway know the limits and budgets of now (they poll every two seconds)."""
        for number in range(len(self.gateways)):
            assert self.call("GET", "/admin/tiers", gateway=number).status_code == 200

    def metric(self, gateway: int, name: str) -> float:
        """The sum of the samples of ``name``."""
        text = httpx.get(self.gateways[gateway].metrics_url, timeout=10.0).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def imbalances(self) -> list[tuple[float, float]]:
        """For each gateway: whether it compares the books of ``identity``, and the imbalance."""
        return [
            (self.metric(number, "tidegate_ledger_compared"), self.metric(number, "tidegate_ledger_imbalance"))
            for number in range(len(self.gateways))
        ]

    def query(self, text: str) -> list[list[str]]:
        """Rows of the shared database, as text."""
        return self.postgresql.rows(self.database_url, text)

    def inferred(self) -> int:
        """Rows that Triton has inferred."""
        answer = httpx.get(f"http://{self.triton.http_url}/v2/models/identity/stats", timeout=10.0)
        return int(answer.json()["model_stats"][0]["inference_count"])

    def kill(self, number: int) -> None:
        """SIGKILL."""
        self.gateways[number].process.kill()
        self.gateways[number].process.wait()

    @contextmanager
    def load(self, headers: dict[str, str], clients: int = 2) -> Iterator[Answers]:
        """``clients`` closed loops for each gateway, during the block."""
        answers, stop = Answers(), threading.Event()

        def client(number: int) -> None:
            with httpx.Client(headers=headers, timeout=30.0) as http:
                while not stop.is_set():
                    sent = time.monotonic()
                    try:
                        answer = http.post(self.gateways[number].url + INFER, json=BODY)
                    except httpx.TransportError:
                        answers.seen.append((number, 0, "", sent))
                        stop.wait(0.05)
                    else:
                        usage_id = answer.headers.get("x-tidegate-usage-id", "")
                        answers.seen.append((number, answer.status_code, usage_id, sent))
                    stop.wait(0.005)

        numbers = [number for number in range(len(self.gateways)) for _ in range(clients)]
        threads = [threading.Thread(target=client, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def volley(cluster: Cluster, headers: dict[str, str], each: int) -> Answers:
    """``each`` requests at once to every gateway."""
    answers = Answers()

    async def one(http: httpx.AsyncClient, number: int) -> None:
        sent = time.monotonic()
        answer = await http.post(cluster.gateways[number].url + INFER, json=BODY)
        answers.seen.append((number, answer.status_code, answer.headers.get("x-tidegate-usage-id", ""), sent))

    async def all_at_once() -> None:
        async with httpx.AsyncClient(headers=headers, timeout=30.0) as http:
            await asyncio.gather(*(one(http, index % len(cluster.gateways)) for index in range(3 * each)))

    asyncio.run(all_at_once())
    return answers


@pytest.fixture(scope="package")
def running_cluster(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory, poll: Callable[..., None]
) -> Iterator[Cluster]:
    try:
        find_wheel()
    except WheelNotFoundError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "prices.toml").write_text(PRICES)
    redis = RedisServer(require_program("redis-server"))
    postgresql = PostgreSQL(programs(require_program))
    triton = EmbeddedTriton(ROOT / "model_repository", folder / "triton", ("identity",), 0, 0, 0)
    started: list[GatewayProcess] = []
    try:
        triton.start()
        redis.start()
        postgresql.start()
        url = postgresql.create_database()
        triton.wait_ready()
        gateways = [_gateway(folder, number, url, redis.url, triton.grpc_url, poll) for number in range(3)]
        gateways[0].bootstrap()
        started += [gateway.start() for gateway in gateways]
        for gateway in gateways:
            poll(lambda g=gateway: httpx.get(f"{g.url}/healthz/ready").status_code == 200, 60, "readiness")
        yield Cluster(gateways, postgresql, redis, triton, url, gateways[0].headers)
    finally:
        for gateway in started:
            if gateway.process.poll() is None:
                gateway.stop()
        triton.stop(0.0)
        postgresql.remove()
        redis.remove()


@pytest.fixture(scope="package")
def spare_triton(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """For a test's own gateways with books of their own: in the cluster's, what they infer would be missing."""
    with serving(ROOT / "model_repository", tmp_path_factory.mktemp("spare"), ["identity"]) as triton:
        yield triton


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """The cluster's prices, for a gateway of the test's own."""
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    return path


def _gateway(folder: Path, number: int, database: str, redis: str, triton: str, poll: Any) -> GatewayProcess:
    own = folder / f"gateway{number}"
    own.mkdir()
    return GatewayProcess(
        own, ROOT / "model_repository", triton, poll, models="identity", database_url=database, redis_url=redis,
        redis_timeout_s="1", pepper_file=str(folder / "pepper"), audit_key_file=str(folder / "audit.key"),
        prices_file=str(folder / "prices.toml"),
    )  # fmt: skip


@pytest.fixture
def cluster(running_cluster: Cluster, poll: Callable[..., None]) -> Cluster:
    """All of it well."""
    for gateway in running_cluster.gateways:
        if gateway.process.poll() is not None:
            gateway.start()
        poll(lambda g=gateway: httpx.get(f"{g.url}/healthz/ready").status_code == 200, 60, "readiness")
    return running_cluster
