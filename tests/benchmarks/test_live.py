"""The commands against a running stack: a real Triton, a real gateway, a real key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.stack import Stack
from tidegate.commands.bench import app
from tidegate.journal_overhead import upstream

pytestmark = [pytest.mark.live, pytest.mark.slow]

SUITE = """
title: A rehearsal
scenarios:
  - {kind: single_stream, workload: identity, duration_s: 1, warmup_s: 0.2}
  - {kind: closed_sweep, workload: identity, protocol: grpc, duration_s: 1, warmup_s: 0.2, users: [4]}
  - {kind: burst, workload: identity, duration_s: 2, warmup_s: 0.2, rate: 40, max_lag_ms: 2000}
  - {kind: overload, workload: identity, duration_s: 1, warmup_s: 0, rate: 50, factors: [2], max_lag_ms: 2000}
  - {kind: cancellations, workload: embeddings, duration_s: 4, warmup_s: 0, rate: 40, max_lag_ms: 5000}
  - {kind: noise_floor, workload: identity, duration_s: 0.2, warmup_s: 0, users: [4]}
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(["embeddings", "identity"]) as running:
        yield running


def test_a_suite_runs_and_its_usage_records_match(stack: Stack, tmp_path: Path) -> None:
    suite = tmp_path / "rehearsal.yaml"
    suite.write_text(SUITE)
    stale = tmp_path / "report" / "samples" / "of another run.hgrm"
    stale.parent.mkdir(parents=True)
    stale.touch()
    where = stack.addresses
    result = CliRunner().invoke(
        app,
        [
            "run",
            str(suite),
            "--url",
            where.gateway,
            "--grpc-url",
            where.gateway_grpc,
            "--out",
            str(tmp_path / "report"),
            "--no-calibrate",
        ],
        env={"TIDEGATE_KEY": where.key},
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    measured = {item["scenario"]: item for item in report["measurements"]}
    assert not stale.exists()
    assert report["skipped"] == []
    assert set(measured) == {"single_stream", "closed_sweep", "burst", "overload", "cancellations", "noise_floor"}
    for item in report["measurements"]:
        assert item["counts"]["wrong"] == item["counts"]["error"] == 0, item["faults"]
        assert not any("usage records" in reason for reason in item["reasons"])
    for name in ("single_stream", "closed_sweep"):
        assert measured[name]["verdict"] == "VALID", measured[name]["reasons"]
        assert measured[name]["usage_records"] >= measured[name]["counts"]["ok"] > 0
        assert measured[name]["mean_batch"] >= 1
    assert measured["single_stream"]["gateway_ms"].keys() >= {"auth", "admit", "infer", "total"}
    assert measured["single_stream"]["inferences_per_s"] > 0
    assert measured["overload"]["recovery_s"] is not None  # at 50/s there is nothing to recover from
    assert measured["cancellations"]["counts"]["cancelled"] > 0
    assert "p95 of the others" in " ".join(measured["cancellations"]["notes"])
    assert report["calibration"] is None
    assert len(report["config_hash"]) == 64
    assert report["points"][0]["runs"] == 1
    assert "A/A, identity http" in (tmp_path / "report" / "report.md").read_text()
    assert "<svg" in (tmp_path / "report" / "report.html").read_text()
    assert list((tmp_path / "report" / "samples").glob("*.jsonl.gz"))


def test_overhead_measures_both_ways_over_both_protocols(stack: Stack) -> None:
    where = stack.addresses
    arguments = ["overhead", "--url", where.gateway, "--grpc-url", where.gateway_grpc, "--triton", where.triton]
    arguments += ["--triton-grpc", where.triton_grpc, "--concurrency", "1,4", "--rounds", "3", "--leg-seconds", "0.4"]
    result = CliRunner().invoke(app, [*arguments, "--json"], env={"TIDEGATE_KEY": where.key})
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(item["protocol"], item["concurrency"]) for item in found] == [
        ("http", 1), ("http", 4), ("grpc", 1), ("grpc", 4),
    ]  # fmt: skip
    for item in found:
        direct, gateway, *floor = item["legs"]
        assert [leg["name"] for leg in floor] == ["floor"]
        assert direct["faults"] == gateway["faults"] == 0, (direct["fault"], gateway["fault"])
        ratio = gateway["ratio"]
        assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]


def test_a_wrong_key_is_no_throughput(stack: Stack) -> None:
    where = stack.addresses
    arguments = [
        "overhead",
        "--url",
        where.gateway,
        "--triton",
        where.triton,
        "--protocols",
        "http",
        "--concurrency",
        "1",
    ]
    result = CliRunner().invoke(
        app, [*arguments, "--rounds", "1", "--leg-seconds", "0.3", "--json"], env={"TIDEGATE_KEY": "no"}
    )
    gateway = json.loads(result.stdout)[0]["legs"][1]
    assert gateway["throughput"]["value"] == 0
    assert "401" in gateway["fault"]


def test_why_asks_gateway_and_triton_alike(stack: Stack) -> None:
    where = stack.addresses
    through = CliRunner().invoke(
        app, ["why", "identity", "--url", where.gateway, "--json"], env={"TIDEGATE_KEY": where.key}
    )
    direct = CliRunner().invoke(app, ["why", "identity", "--triton", where.triton, "--json"])
    first, second = json.loads(through.stdout), json.loads(direct.stdout)
    assert first["max_batch_size"] == second["max_batch_size"] == 64
    assert first["findings"]


def test_the_journal_is_measured_on_and_off(stack: Stack) -> None:
    arguments = ["journal", "--triton", upstream(stack.addresses), "--models", "identity", "--protocols", "http,grpc"]
    result = CliRunner().invoke(
        app, [*arguments, "--concurrency", "4", "--rounds", "3", "--leg-seconds", "0.5", "--json"]
    )
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert [(found["workload"], found["protocol"]) for found in measured] == [
        ("identity", "http"),
        ("identity", "grpc"),
    ]
    for found in measured:
        off, on = found["legs"]
        assert (off["name"], on["name"]) == ("journal off", "journal on")
        assert off["faults"] == on["faults"] == 0, (off["fault"], on["fault"])
        assert found["overhead"]["value"] == pytest.approx(1 - on["ratio"]["value"])
        assert min(leg["server_cpu_us"]["value"] for leg in (off, on)) > 0  # by how much they differ is not for a test
        assert found["overhead"]["low"] <= found["overhead"]["value"] <= found["overhead"]["high"]


def test_gateways_that_are_compared_infer_over_http_as_a_stacks_own_does(stack: Stack) -> None:
    where = stack.addresses
    address, _, http_port = upstream(where).partition("/")
    assert where.triton_grpc == f"grpc://{address}"
    assert where.triton == f"http://{address.partition(':')[0]}:{http_port}"


@pytest.mark.parametrize("wrong", [("--models", "planet"), ("--models", ""), ("--protocols", "smtp")])
def test_what_cannot_be_measured_is_refused(wrong: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["journal", *wrong])
    assert result.exit_code == 2
