"""The scenarios that need a stack of their own, and every Locust user: against a real Triton and a real gateway."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.locust_engine import LOCUSTFILE
from benchmarks.stack import Stack
from benchmarks.users.tally import TALLIES
from benchmarks.workloads import WORKLOADS
from tidegate.commands.bench import app

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]

SUITE = """
title: What starts a stack of its own
scenarios:
  - {kind: cold_start, workload: identity}
  - {kind: server, workload: identity, duration_s: 0.5, warmup_s: 0.1, slo: {ms: 5000}, max_lag_ms: 5000}
  - {kind: offline, workload: identity, users: [32], duration_s: 1, warmup_s: 0.2}
  - {kind: soak, workload: identity, duration_s: 5, warmup_s: 0.1, rate: 50, max_lag_ms: 5000}
  - {kind: mixed_tenants, workload: identity, duration_s: 3, warmup_s: 0, rate: 200, max_lag_ms: 5000}
  - {kind: mixed_tenants, workload: identity, protocol: grpc, duration_s: 3, warmup_s: 0, rate: 200, max_lag_ms: 5000}
  - {kind: closed_sweep, workload: identity, users: [3], duration_s: 2, warmup_s: 0.5, engine: locust}
  - {kind: closed_sweep, workload: identity, protocol: grpc, users: [3], duration_s: 2, warmup_s: 0.5, engine: locust}
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Measurements by scenario and protocol."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "own.yaml").write_text(SUITE)
    result = CliRunner().invoke(
        app, ["run", str(folder / "own.yaml"), "--out", str(folder / "report"), "--no-calibrate"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["skipped"] == []
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in report["measurements"]:
        assert item["counts"]["wrong"] == item["counts"]["error"] == 0, item["faults"]
        assert not any("usage records" in text for text in (*item["reasons"], *item["notes"])), item
        found.setdefault((item["scenario"], item["protocol"]), []).append(item)
    return found


def test_a_cold_start_is_timed_from_its_very_first_answer(measured: dict[tuple[str, str], list[Any]]) -> None:
    (item,) = measured["cold_start", "http"]
    assert len(item["first_answers_ms"]) == 20
    assert item["first_answers_ms"][0] == max(item["first_answers_ms"][:2])  # it opens the connection, and all else
    assert item["usage_records"] == 20
    assert "ready" in item["notes"][-1]


def test_the_search_finds_a_highest_rate(measured: dict[tuple[str, str], list[Any]]) -> None:
    found = [item for item in measured["server", "http"] if item["max_rate"] is not None]
    assert len(found) == 1
    assert found[0]["max_rate"] == pytest.approx(found[0]["load"]["offered"], rel=0.3)
    assert found[0]["meets_slo"]


def test_offline_uses_all_its_users(measured: dict[tuple[str, str], list[Any]]) -> None:
    (item,) = measured["offline", "http"]
    assert (item["load"]["users"], item["connections"]) == (32, 32)
    assert item["goodput"] > 0


def test_a_soak_compares_the_memory_of_its_parts(measured: dict[tuple[str, str], list[Any]]) -> None:
    parts = measured["soak", "http"]
    assert len(parts) == 10
    assert re.search(r"memory from \d+ to \d+ MiB", " ".join(parts[-1]["notes"]))
    assert all(part["peak_rss_bytes"] >= 2**27 for part in parts)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_other_tenants_are_judged_beside_a_hot_key(
    measured: dict[tuple[str, str], list[Any]], protocol: str
) -> None:
    alone, beside = measured["mixed_tenants", protocol]
    assert set(alone["tenants"]) == {"tenant 1", "tenant 2", "tenant 3"}
    assert set(beside["tenants"]) == {"hot", *alone["tenants"]}
    assert beside["tenants"]["hot"]["goodput"] > beside["tenants"]["tenant 1"]["goodput"] > 0
    assert beside["fairness"]["alone_ms"] > 0
    assert "isolated" in beside["notes"][-1]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_locust_makes_closed_sweeps_too(measured: dict[tuple[str, str], list[Any]], protocol: str) -> None:
    (item,) = measured["closed_sweep", protocol]
    assert (item["label"], item["verdict"]) == ("3 users, Locust", "VALID"), item["reasons"]
    assert item["usage_records"] > item["counts"]["ok"] > 0
    assert item["counts"]["ok"] == sum(item["counts"].values())


def test_every_locust_user_gets_right_answers(tmp_path: Path) -> None:
    with Stack() as stack:
        where = stack.addresses
        done = subprocess.run(
            [
                sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", where.gateway, "--headless",
                "--only-summary", "--tidegate-key", where.key or "", "--tidegate-grpc", where.gateway_grpc,
                "-u", "22", "-r", "22", "--window-seconds", "12", "--stop-timeout", "10",
                "--hdr-out", str(tmp_path / "hdr"),
            ],
            capture_output=True, text=True, timeout=240, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tallies = json.loads((tmp_path / "hdr" / TALLIES).read_text())["tallies"]
    assert set(tallies) == {*WORKLOADS, "identity (gRPC)", "embeddings-tensors (gRPC)"}
    assert {outcome for tally in tallies.values() for outcome in tally["counters"]["outcomes"]} == {"ok"}
