"""Rolling restarts under load: clients that go by readiness see none of them.

``ROLLING_RESTARTS=20 pytest -rP tests/live/cluster/test_restarts.py`` is a long run, and prints what it counted.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from embedded.launcher import EmbeddedTriton
from tests.live.cluster.conftest import BODY, INFER, Cluster
from tests.live.cluster.loops import Loops
from tests.live.faults.servers import ROOT, GatewayProcess

pytestmark = [pytest.mark.live, pytest.mark.database, pytest.mark.redis, pytest.mark.slow]

RESTARTS = int(os.environ.get("ROLLING_RESTARTS", "2"))
CLIENTS = 6
DELAY_S = 2.0
"""What a gateway goes on accepting after SIGTERM: many times what clients take to notice."""


class Balancer(Loops):
    """What a load balancer does: asks each gateway whether it is ready, and sends to those that are.

    Seen are status, gateway and usage id.
    """

    def __init__(self, gateways: list[GatewayProcess]) -> None:
        super().__init__()
        self._gateways = gateways
        self._ready: set[str] = set()
        for gateway in gateways:
            self.begin(self._watch, gateway)
        for number in range(CLIENTS):
            self.begin(self._ask, number)

    def ready(self, gateway: GatewayProcess) -> bool:
        return gateway.url in self._ready

    def count(self, url: str) -> int:
        """Answers of one gateway."""
        return sum(seen == url for _, seen, _ in list(self.seen))

    def _watch(self, gateway: GatewayProcess) -> None:
        while not self._stop.wait(0.05):
            url = gateway.url
            try:
                ready = httpx.get(f"{url}/healthz/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                ready = False
            (self._ready.add if ready else self._ready.discard)(url)

    def _ask(self, number: int) -> None:
        with httpx.Client(headers=self._gateways[0].headers, timeout=30.0) as http:
            while not self._stop.wait(0.005):
                if not (ready := sorted(self._ready)):
                    continue
                number += 1
                url = ready[number % len(ready)]
                try:
                    answer = http.post(url + INFER, json=BODY)
                except httpx.TransportError:
                    self.seen.append((0, url, ""))
                else:
                    self.seen.append((answer.status_code, url, answer.headers.get("x-tidegate-usage-id", "")))


@pytest.mark.timeout(240 + 30 * RESTARTS)
def test_rolling_restarts_fail_no_request(
    spare_triton: EmbeddedTriton, cluster: Cluster, tmp_path: Path, poll: Callable[..., None]
) -> None:
    database = cluster.postgresql.create_database()
    gateways = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        gateways.append(
            GatewayProcess(
                tmp_path / name, ROOT / "model_repository", spare_triton.grpc_url, poll, models="identity",
                database_url=database, pepper_file=str(tmp_path / "pepper"),
                audit_key_file=str(tmp_path / "audit.key"), shutdown_delay_s=str(DELAY_S),
            )
        )  # fmt: skip
    gateways[0].bootstrap()
    started = []
    try:
        started = [gateway.start() for gateway in gateways]
        with Balancer(gateways) as clients:
            for restart in range(RESTARTS):
                poll(lambda: all(map(clients.ready, gateways)), 60, "both gateways")
                gateway = gateways[restart % 2]
                served = clients.count(gateway.url)
                poll(lambda g=gateway, least=served + 20: clients.count(g.url) >= least, 60, "load")
                gateway.process.send_signal(signal.SIGTERM)
                assert gateway.process.wait(60) == 0
                gateway.start()
            poll(lambda: all(map(clients.ready, gateways)), 60, "both gateways")
            seen = len(clients.seen)
            poll(lambda: len(clients.seen) >= seen + 20, 60, "load after the last restart")
        statuses = Counter(status for status, _, _ in clients.seen)
        print(f"{RESTARTS} restarts under load, answers by status: {dict(statuses)}")
        assert set(statuses) == {200}
        wanted = {usage_id for _, _, usage_id in clients.seen}
        query = "SELECT usage_id FROM usage_records WHERE state = 'completed'"

        def recorded() -> bool:
            return wanted == {row[0] for row in cluster.postgresql.rows(database, query)}

        poll(recorded, 60, "a record for each answer, and no other")
    finally:
        for gateway in started:
            gateway.stop()
