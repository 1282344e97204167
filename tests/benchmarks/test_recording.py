"""Three digits, sample floors, and merging without averaging percentiles."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.recording import (
    HIGHEST_US,
    Latency,
    Outcome,
    Recording,
    bounds,
    histogram_of,
    merged,
    most_over,
    percentiles,
    sample_floor,
    write_hgrm,
)
from benchmarks.users.tally import three_digits


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


def test_mean_and_deviation_are_the_histograms_own() -> None:
    spread = np.random.default_rng(1).lognormal(9, 3, 5_000).astype(np.int64) + 1
    for values in (spread.clip(max=HIGHEST_US), np.array([0, 1, 2047, 2048, 4095, 4096, HIGHEST_US])):
        histogram = histogram_of(values)
        latency = Latency.of(histogram)
        assert latency.mean == pytest.approx(histogram.get_mean_value() / 1000)
        assert latency.std == pytest.approx(histogram.get_stddev() / 1000)


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


@pytest.mark.parametrize(
    ("samples", "percentile", "over"),
    [
        (458, 99, -1), (459, 99, 0), (662, 99, 1), (1_000, 99, 2), (6_898, 99, 50), (10_000, 99, 77),
        (100_000, 99, 927), (89, 95, -1), (90, 95, 0), (129, 95, 0), (130, 95, 1), (1_372, 95, 50),
        (44, 90, 0), (197, 90, 10),
        (4_603, 99.9, 0), (10_000, 99.9, 2), (100_000, 99.9, 77),
    ],
)  # fmt: skip
def test_how_many_may_lie_over_a_bound_is_the_methods_table(samples: int, percentile: float, over: int) -> None:
    assert most_over(samples, percentile) == over


def _timed(*parts: tuple[int, float, Outcome]) -> Recording:
    recording = Recording()
    for count, milliseconds, outcome in parts:
        for _ in range(count):
            recording.add(0, 0, int(milliseconds * 1e6), outcome, 200)
    return recording


@pytest.mark.parametrize(
    ("parts", "met"),
    [
        ([(89, 1, Outcome.OK)], False),  # too few to say
        ([(90, 1, Outcome.OK)], True),
        ([(99, 1, Outcome.OK), (1, 500, Outcome.OK)], False),  # 100 requests: none may be late
        ([(360, 1, Outcome.OK), (4, 500, Outcome.OK)], True),
        ([(200, 1, Outcome.OK), (3, 1, Outcome.SHED)], False),  # more than one in a hundred refused
        ([(200, 1, Outcome.OK), (2, 1, Outcome.SHED)], True),
        ([(200, 1, Outcome.OK), (50, 1, Outcome.CANCELLED)], True),  # given up by the generator: not judged
        ([(80, 1, Outcome.OK), (50, 1, Outcome.CANCELLED)], False),
    ],
)
def test_an_objective_is_met_with_confidence_or_not_at_all(parts: list[tuple[int, float, Outcome]], met: bool) -> None:
    assert _timed(*parts).meets(95, 100.0) is met


def test_a_percentile_lies_within_its_bound() -> None:
    histogram = histogram_of([*range(1000, 1999), 50_000])
    assert percentiles(histogram)["p99"] == pytest.approx(1.99, rel=0.01)
    assert bounds(histogram)["p99"] == pytest.approx(1.997, rel=0.005)
    assert bounds(histogram_of([1000] * 458))["p99"] is None
    assert bounds(histogram_of([*[1000] * 458, 7000]))["p99"] == pytest.approx(7, rel=0.01)


def test_what_ended_inside_counts_whenever_it_began() -> None:
    recording = _recording()
    assert recording.ended(Outcome.OK, 4_000_000, 5_000_000) == 1
    assert recording.ended(Outcome.OK, 5_000_001, 9_000_000) == 0
    assert recording.ended(Outcome.WRONG, 0, 10**12) == 1


def test_requests_under_way_are_averaged_over_time() -> None:
    recording = Recording()
    recording.add(0, 0, 10, Outcome.OK, 200)
    recording.add(5, 5, 25, Outcome.OK, 200)  # ends after the window
    assert recording.mean_in_flight(0, 20) == pytest.approx((10 + 15) / 20)
    assert recording.mean_in_flight(10, 20) == 1.0
    assert Recording().mean_in_flight(0, 20) == 0.0


def test_bytes_and_faults_of_the_warm_up_are_cut_off_too() -> None:
    recording = Recording()
    recording.add(1, 1, 2, Outcome.ERROR, 500, bytes_out=100, fault="early", timing=b"a;dur=1")
    recording.add(9, 9, 10, Outcome.ERROR, 500, bytes_out=7, fault="late", timing=b"b;dur=1")
    later = recording.since(5)
    assert sum(later.bytes_out) == 7
    assert later.faults == {"late": 1}
    assert later.timings == [(9, b"b;dur=1")]
