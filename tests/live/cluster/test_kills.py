"""``kill -9`` of a real gateway under load, over and over: every 2xx a client saw has exactly one record.

``GATEWAY_KILLS=200 pytest -rP tests/live/cluster/test_kills.py`` is a long run, and prints what it counted.
(``tests/gateway/ledger/test_crash.py`` kills the ledger alone, thousands of times, on both databases.)
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from embedded.launcher import EmbeddedTriton
from tests.live.cluster.conftest import BODY, INFER
from tests.live.cluster.loops import Loops
from tests.live.faults.servers import ROOT, GatewayProcess

pytestmark = [pytest.mark.live, pytest.mark.database, pytest.mark.redis, pytest.mark.slow]

KILLS = int(os.environ.get("GATEWAY_KILLS", "3"))
CLIENTS = 8


class Clients(Loops):
    """Closed loops that ask whatever gateway there is: status, its own request id, usage id."""

    def __init__(self, gateway: GatewayProcess) -> None:
        super().__init__()
        self._gateway = gateway
        for number in range(CLIENTS):
            self.begin(self._loop, number)

    def count(self, status: int) -> int:
        return sum(seen == status for seen, _, _ in self.seen)

    def _loop(self, number: int) -> None:
        sent = 0
        while not self._stop.is_set():
            url = self._gateway.url
            with httpx.Client(base_url=url, headers=self._gateway.headers, timeout=30.0) as http:
                while not self._stop.is_set() and url == self._gateway.url:
                    sent += 1
                    name = f"client-{number}-{sent}"
                    try:
                        answer = http.post(INFER, json=BODY, headers={"x-request-id": name})
                    except httpx.TransportError:
                        self.seen.append((0, name, ""))
                        self._stop.wait(0.02)
                    else:
                        self.seen.append((answer.status_code, name, answer.headers.get("x-tidegate-usage-id", "")))


@pytest.mark.timeout(240 + 10 * KILLS)
def test_a_gateway_killed_over_and_over_loses_nothing_and_bills_nothing_twice(
    spare_triton: EmbeddedTriton, prices: Path, tmp_path: Path, poll: Callable[..., None]
) -> None:
    chance = random.Random(KILLS)
    gateway = GatewayProcess(
        tmp_path, ROOT / "model_repository", f"{spare_triton.grpc_url}/{spare_triton.http_port}", poll,
        models="identity", prices_file=str(prices),
    ).bootstrap().start()  # fmt: skip
    try:
        with Clients(gateway) as clients:
            for _ in range(KILLS):
                served = clients.count(200)
                poll(lambda least=served + 20: clients.count(200) >= least, 60, "load")
                time.sleep(chance.random() * 0.5)  # somewhere between two writes to the database
                gateway.process.kill()
                gateway.process.wait()
                gateway.start()
            served = clients.count(200)
            poll(lambda: clients.count(200) >= served + 20, 60, "load after the last kill")
        statuses = Counter(status for status, _, _ in clients.seen)
        assert set(statuses) <= {0, 200, 503}, statuses
        answered = {usage_id: name for status, name, usage_id in clients.seen if status == 200}
        assert len(answered) == statuses[200]  # no id was given twice

        def settled() -> bool:
            """Every 2xx has its record, and every call an end."""
            states = {usage_id: state for usage_id, (state, _, _) in gateway.usage().items()}
            ended = "reserved" not in states.values()
            return ended and all(states.get(usage_id) == "completed" for usage_id in answered)

        poll(settled, 90, "a record for each 2xx, and an end for every call")
        rows = gateway.query("SELECT usage_id, request_id, state, billed_pico_usd FROM usage_records")
        records = Counter(request_id for _, request_id, _, _ in rows)
        assert all(records[name] == 1 for name in answered.values())
        assert max(records.values()) == 1  # nor has any other request two
        others = [(state, billed) for usage_id, _, state, billed in rows if usage_id not in answered]
        print(f"{KILLS} kills, statuses {dict(statuses)}, {len(rows)} records, of them not answered: "
              f"{dict(Counter(state for state, _ in others))}")  # fmt: skip
        # What nobody saw end was in flight when a gateway died: eight at a time at most.
        assert len(others) <= CLIENTS * KILLS
        assert all(state in {"completed", "unknown", "client_closed"} for state, _ in others)
        assert all(billed == 0 for state, billed in others if state != "completed")
        verified = httpx.get(f"{gateway.url}/admin/audit/verify", headers=gateway.headers, timeout=30).json()
        assert verified["whole"], verified
        assert gateway.stop() == 0
        assert list((tmp_path / "data" / "journal").glob("[!.]*")) == []
    finally:
        gateway.stop()
    (sums,) = gateway.query("SELECT sum(requests), sum(billed_pico_usd) FROM usage_daily")
    assert sums == gateway.query("SELECT count(*), sum(billed_pico_usd) FROM usage_records")[0]
