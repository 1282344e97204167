"""A gateway is backed up while it serves, lost with its disk, and put back as the operator's page says."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from embedded.launcher import EmbeddedTriton
from gateway.store.files import private_directory
from tests.live.cluster.test_kills import Clients
from tests.live.faults.servers import ROOT, GatewayProcess

pytestmark = [pytest.mark.live, pytest.mark.database, pytest.mark.redis, pytest.mark.slow]


def test_a_backup_taken_under_load_has_the_usage_until_then_and_serves(
    spare_triton: EmbeddedTriton, prices: Path, tmp_path: Path, poll: Callable[..., None]
) -> None:
    def make(folder: Path) -> GatewayProcess:
        triton = spare_triton.grpc_url
        return GatewayProcess(
            folder, ROOT / "model_repository", triton, poll, models="identity", prices_file=str(prices)
        )

    first, copy = make(private_directory(tmp_path / "first")).bootstrap().start(), tmp_path / "copy.db"
    second = make(private_directory(tmp_path / "second"))
    try:
        with Clients(first) as clients:
            poll(lambda: clients.count(200) >= 50, 60, "load")
            before = {usage_id for status, _, usage_id in list(clients.seen) if status == 200}

            def written() -> bool:
                ended = {usage_id for usage_id, (state, _, _) in first.usage().items() if state == "completed"}
                return before <= ended

            poll(written, 30, "their records")
            with sqlite3.connect(tmp_path / "first" / "data" / "tidegate.db") as source:
                with sqlite3.connect(copy) as target:
                    source.backup(target)
                target.close()
            source.close()
            served = clients.count(200)
            poll(lambda: clients.count(200) >= served + 50, 60, "load after the backup")
        after = {usage_id for status, _, usage_id in clients.seen if status == 200}
        first.process.kill()  # and its disk is gone
        first.process.wait()

        data = private_directory(tmp_path / "second" / "data")
        shutil.copy(copy, data / "tidegate.db")
        for name in ("pepper", "audit.key", "audit.anchor"):
            shutil.copy(tmp_path / "first" / "data" / name, data / name)
        for path in data.iterdir():
            path.chmod(0o600)
        second.key = first.key
        second.start()
        poll(lambda: httpx.get(f"{second.url}/healthz/ready").status_code == 200, 60, "readiness")
        usage = second.usage()
        assert before <= {usage_id for usage_id, (state, _, _) in usage.items() if state == "completed"}
        assert not after <= usage.keys()  # what came after the backup went with the disk
        with Clients(second) as clients:
            poll(lambda: clients.count(200) >= 20, 60, "load")
        assert {status for status, _, _ in clients.seen} == {200}
        new = {usage_id for _, _, usage_id in clients.seen}
        poll(lambda: new <= second.ended().keys(), 30, "new records")
        verified = httpx.get(f"{second.url}/admin/audit/verify", headers=second.headers, timeout=30).json()
        assert verified["whole"], verified
        assert second.stop() == 0
    finally:
        for gateway in (first, second):
            if gateway.log_file.exists():  # it was started
                gateway.stop()
    sums = second.query("SELECT sum(requests), sum(billed_pico_usd) FROM usage_daily")
    ended = "SELECT count(*), sum(billed_pico_usd) FROM usage_records WHERE state <> 'reserved'"
    assert sums == second.query(ended)
