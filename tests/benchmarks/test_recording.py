"""Three digits, sample floors, and merging without averaging percentiles."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.recording import (
    Latency,
    Outcome,
    Recording,
    histogram_of,
    merged,
    percentiles,
    sample_floor,
    write_hgrm,
)
from benchmarks.users.session import three_digits


@pytest.mark.parametrize(("percentile", "floor"), [(90, 44), (95, 90), (99, 459), (99.9, 4603)])
def test_sample_floors_are_those_of_the_method(percentile: float, floor: int) -> None:
    assert sample_floor(percentile) == floor


@pytest.mark.parametrize(("samples", "printed"), [(458, False), (459, True)])
def test_no_p99_below_its_floor(samples: int, printed: bool) -> None:
    found = percentiles(histogram_of([1000] * samples))
    assert (found["p99"] is not None) is printed
    assert found["p99.9"] is None


@pytest.mark.parametrize("microseconds", [1, 147, 3_432, 58_760, 123_456, 3_456_789])
def test_three_digits_are_kept(microseconds: int) -> None:
    latency = Latency.of(histogram_of([microseconds] * 10))
    assert latency.max == pytest.approx(microseconds / 1000, rel=0.001)


def test_merging_is_the_histogram_of_all_samples() -> None:
    left, right = list(range(1, 2001)), [5000] * 500
    both = merged([histogram_of(left).encode(), histogram_of(right).encode()])
    together = histogram_of([*left, *right])
    assert both.get_total_count() == 2500
    assert percentiles(both) == percentiles(together)


def _recording() -> Recording:
    recording = Recording()
    ms = 1_000_000
    recording.add(0, 2 * ms, 5 * ms, Outcome.OK, 200, 10)
    recording.add(10 * ms, 10 * ms, 11 * ms, Outcome.SHED, 429)
    recording.add(20 * ms, 20 * ms, 120 * ms, Outcome.TIMEOUT, 0)
    recording.add(30 * ms, 30 * ms, 31 * ms, Outcome.WRONG, 200, 10, tenant=2)
    return recording


def test_latency_counts_from_the_intended_time_and_timeouts_belong_to_it() -> None:
    recording = _recording()
    assert sorted(recording.latencies_us().tolist()) == [1000, 5000, 100_000]
    assert sorted(recording.service_us().tolist()) == [1000, 3000, 100_000]
    assert recording.latencies_us(Outcome.SHED).tolist() == [1000]
    assert recording.lag_us().tolist() == [2000, 0, 0, 0]
    assert recording.statuses() == {"0": 1, "200": 2, "429": 1}


def test_the_warm_up_is_cut_off_by_intended_time() -> None:
    later = _recording().since(10_000_000)
    assert len(later) == 3
    assert later.count(Outcome.OK) == 0


def test_workers_are_merged_sample_by_sample() -> None:
    recording = _recording()
    recording.merge(_recording())
    assert len(recording) == 8
    assert recording.count(Outcome.OK) == 2


def test_raw_samples_and_the_distribution_are_written(tmp_path: Path) -> None:
    recording = _recording()
    recording.write_jsonl(tmp_path / "samples.jsonl.gz")
    with gzip.open(tmp_path / "samples.jsonl.gz") as file:
        lines = [json.loads(line) for line in file]
    assert [line["outcome"] for line in lines] == ["ok", "shed", "timeout", "wrong"]
    assert lines[0] == {
        "intended_us": 0, "sent_us": 2000, "done_us": 5000, "outcome": "ok", "status": 200, "bytes": 10, "tenant": 0,
    }  # fmt: skip
    write_hgrm(histogram_of(recording.latencies_us()), tmp_path / "latency.hgrm")
    assert "Percentile" in (tmp_path / "latency.hgrm").read_text()


@pytest.mark.parametrize(("given", "kept"), [(0, 0), (0.1234, 0.123), (147.3, 147), (3432, 3430), (58760, 58800)])
def test_locusts_rounding_is_replaced_by_three_digits(given: float, kept: float) -> None:
    assert three_digits(given) == kept
